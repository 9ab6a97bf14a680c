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

from medistill.data.preprocess import PreparedDataset
from medistill.files import CACHE_VARIABLE

ROUNDS = 3
DISTILL = (
    "--ipc 10 --set method.iterations=133 --set labels.recipe.min_steps=200 "
    "--set labels.recipe.steps_per_doubling=27 --set labels.recipe.max_steps=1000"
)
"""The default with a third of the steps of everything that is trained. What is trained in equal shares is what
scales; starting the program, and the one network that calibrates labels, do less.
"""

SETS = ("pneumoniamnist", "bloodcells_28")

EVALUATE = "--set repeats=2 --set random_draws=2 --set recipe.min_steps=100 --set recipe.max_steps=100"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
SAID = "said.txt"

ONE, ALL, BUSY, TWICE, QUOTA = (
    "one thread alone", "all cores alone", "all cores beside a busy process", "twice at once", "a quota of one CPU",
)  # fmt: skip
RATIOS = {
    "one thread's time over all cores'": (ONE, ALL),
    "beside a busy process over one thread alone": (BUSY, ONE),
    "twice at once over once, all cores": (TWICE, ALL),
    "a quota of one CPU over one thread": (QUOTA, ONE),
}
"""Ways of running whose seconds are compared: the first over the second."""


def contention(_prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Ratios of wall-clock seconds of ``distill`` (the default, fewer steps) and ``evaluate``, by rounds."""
    result: dict[str, Any] = {}
    for name in SETS:
        if (file := loops.set_beside(given.data, name)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            package, cache = home / "package", home / "cache"
            finish([(begin(["distill", str(file), "--out", str(package), *DISTILL.split()], cache), cache)])
            for title, words, begun_with in (
                ("distill", ["distill", str(file), *DISTILL.split()], None),
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
            finish([(begin(command, home, before), home) for home, command in running])
            return time.monotonic() - begun

    ways: dict[str, Callable[[], float]] = {
        ONE: lambda: seconds(options=("--threads", "1")),
        ALL: seconds,
        BUSY: lambda: beside_a_busy_process(seconds),
        TWICE: lambda: seconds(copies=2),
    }
    found = {name: way() for name, way in ways.items()}
    with quota_of_one_cpu() as prefix:
        if prefix is not None:
            found[QUOTA] = seconds(before=prefix)
    return found


def told(title: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the ratios with their range, printed and returned."""
    result: dict[str, Any] = {"seconds": rounds}
    for name, (over, under) in RATIOS.items():
        if over not in rounds[0]:
            loops.say(f"{title}, {name}: not measured, no control group can be made here")
            continue
        ratios = sorted(r[over] / r[under] for r in rounds)
        result[name] = {"ratio": statistics.median(ratios), "ratios": ratios}
        loops.say(f"{title}, {name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return result


def begin(words: list[str], cache: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A command of medistill with a cache of its own, on the cores that it is granted; what it says goes to a file
    there, as a pipe that nobody empties would stop it.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    cache.mkdir(exist_ok=True)
    with (cache / SAID).open("wb") as said:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "medistill.cli", *words],
            env={**environment, CACHE_VARIABLE: str(cache)}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip


def finish(running: list[tuple[subprocess.Popen[bytes], Path]]) -> None:
    """Wait for all processes, each with its cache; what one says when it fails ends the benchmark."""
    for process, cache in running:
        if process.wait():
            raise SystemExit(f"status {process.returncode}: {(cache / SAID).read_text()[-500:]}")


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
    is_first = (first / "cpu.cfs_quota_us").exists()
    root, files = (first, quotas) if is_first else (CONTROL_GROUPS, {"cpu.max": "100000 100000"})
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
