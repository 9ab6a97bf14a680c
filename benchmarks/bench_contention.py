"""The section of ``bench.py`` on shared cores: what other work costs a command, as ratios to one thread alone."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import bench_loops as loops
from bench_memory import TEACHER_STEPS

from medistill.data.preprocess import PreparedDataset
from medistill.files import CACHE_VARIABLE

SETS = ("pneumoniamnist", "bloodcells_28")
ROUNDS = 3
DISTILL = "--ipc 10 --set method.iterations=100" + TEACHER_STEPS.format(300)
EVALUATE = "--set repeats=2 --set random_draws=2 --set recipe.min_steps=300 --set recipe.max_steps=300"
CONTROL_GROUPS = Path("/sys/fs/cgroup")

LINES = {
    "all cores alone": ("one thread alone", "times faster"),
    "all cores beside a busy process": ("one thread alone", "times the time"),
    "twice at once": ("all cores alone", "times the time"),
    "a quota of one CPU": ("one thread alone", "times the time"),
}
"""What each way of running is a ratio to, and how it is read."""


def contention(_prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Ratios of wall-clock seconds of ``distill`` (the default, fewer steps) and ``evaluate``, by rounds."""
    result: dict[str, Any] = {}
    for name in SETS:
        if (file := loops.set_beside(given.data, name)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            package, cache = home / "package", home / "cache"
            finish([begin(["distill", str(file), "--out", str(package), *DISTILL.split()], cache)])
            for title, words, begun_with in (
                ("distill", ["distill", str(file), "--overwrite", *DISTILL.split()], None),
                ("evaluate", ["evaluate", str(package), "--on", str(file), *EVALUATE.split()], cache),
            ):
                rounds = [one_round(words, begun_with) for _ in range(ROUNDS)]
                result[f"{name}, {title}"] = told(f"{name}, {title}", rounds)
    return result


def one_round(words: list[str], begun_with: Path | None) -> dict[str, float]:
    """Seconds of a command each way; each run has a cache of its own that begins with what is in ``begun_with``."""

    def seconds(copies: int = 1, before: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> float:
        with tempfile.TemporaryDirectory() as folder:
            running = []
            for copy in range(copies):
                home = Path(folder) / str(copy)
                if begun_with is not None:
                    shutil.copytree(begun_with, home)
                out = ["--out", str(home / "package")] if words[0] == "distill" else []
                running.append((home, [*words, *out, *options]))
            begun = time.monotonic()
            finish([begin(command, home, before) for home, command in running])
            return time.monotonic() - begun

    ways: dict[str, Callable[[], float]] = {
        "one thread alone": lambda: seconds(options=("--threads", "1")),
        "all cores alone": seconds,
        "all cores beside a busy process": lambda: beside_a_busy_process(seconds),
        "twice at once": lambda: seconds(copies=2),
    }
    found = {name: way() for name, way in ways.items()}
    with quota_of_one_cpu() as prefix:
        if prefix is not None:
            found["a quota of one CPU"] = seconds(before=prefix)
    return found


def told(title: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the ratios with their range, printed and returned."""
    result: dict[str, Any] = {"seconds": rounds}
    for way, (reference, meaning) in LINES.items():
        if way not in rounds[0]:
            loops.say(f"{title}, {way}: not measured, no control group can be made here")
            continue
        ratios = sorted(r[way] / r[reference] for r in rounds)
        if meaning == "times faster":
            ratios = sorted(1 / ratio for ratio in ratios)
        result[way] = {"ratio": statistics.median(ratios), "ratios": ratios, "to": reference, "meaning": meaning}
        loops.say(
            f"{title}, {way}: {statistics.median(ratios):.2f} {meaning} of {reference} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return result


def begin(words: list[str], cache: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A command of medistill with a cache of its own; threads that wait for others sleep."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "medistill.cli", *words],
        env={**environment, CACHE_VARIABLE: str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all; what one says when it fails ends the benchmark."""
    for process in processes:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"status {process.returncode}: {said.decode()[-500:]}")


def beside_a_busy_process(seconds: Callable[[], float]) -> float:
    """Seconds of a command while another process keeps a core busy."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return seconds()
    finally:
        busy.kill()
        busy.wait()


@contextmanager
def quota_of_one_cpu() -> Iterator[tuple[str, ...] | None]:
    """Words before a command that run it in a control group of one CPU; None where no such group can be made."""
    first = CONTROL_GROUPS / "cpu"
    quotas = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    root, files = (first, quotas) if first.is_dir() else (CONTROL_GROUPS, {"cpu.max": "100000 100000"})
    group = root / f"medistill-bench-{os.getpid()}"
    with ExitStack() as stack:
        try:
            group.mkdir()
            stack.callback(group.rmdir)
            for name, text in files.items():
                (group / name).write_text(text)
        except OSError:
            yield None
            return
        yield ("sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh")
