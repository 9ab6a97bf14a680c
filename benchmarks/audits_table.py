"""Audit packages made in seven ways by every check: one command, resumed by giving it again.

Ten images per class: the default, the same from real first images, ``dm``, random images, random images with the
default's soft labels, and packages with a guarantee of ε = 8 and ε = 1. Each audit runs in a process of its own with
the options that it has if nobody names any. What is measured already lies in ``docs/results/audits`` and is not
measured again; a stopped audit goes on. ``make docs`` writes the table from it.

    python benchmarks/audits_table.py [FOLDER OF SETS] [SET ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sets import ROOT, folder_and_sets, medistill_json

import medistill
from medistill.files import CACHE_VARIABLE, pretty_json, user_cache, write_atomically

RESULTS = ROOT / "docs" / "results" / "audits"
SETS = ("pneumoniamnist", "bloodcells_28")
TASKS = {"alz4_28": ["--task", "ordinal"]}
WAYS = {
    "default": [],
    "default, real first images": ["--set", "method.start=real"],
    "dm": ["--method", "dm"],
    "random": ["--method", "random"],
    "random, soft labels": ["--method", "random", "--factor", "2", "--teachers", "2"],
    "epsilon 8": ["--epsilon", "8"],
    "epsilon 1": ["--epsilon", "1"],
}
KEPT = ("audits", "not_measured")


def measure(folder: Path, data: str, way: str) -> dict[str, Any]:
    """One package, and what every check finds; seconds and peak memory are of the audit alone."""
    source, name = str(folder / f"{data}.npz"), f"{data}-{way.replace(', ', '-').replace(' ', '-')}"
    out, cache = user_cache() / "audits-table" / name, user_cache() / "audits-table" / f"{name}-cache"
    if not out.exists():
        medistill_json("distill", source, "--ipc", "10", "--out", str(out), *TASKS.get(data, []), *WAYS[way])
    cache.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    command = [sys.executable, "-m", "medistill.cli", "audit", str(out), "--train", source, "--json"]
    environment = {**os.environ, CACHE_VARIABLE: str(cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    found = json.loads(said)
    return {
        "set": data, "way": way, "seconds": time.monotonic() - begun, "peak_memory_mb": used.ru_maxrss * 1024 / 1e6,
        "version": medistill.__version__, **{key: found[key] for key in KEPT},
    }  # fmt: skip


def main() -> None:
    """Measure what is missing."""
    folder, sets = folder_and_sets(__doc__ or "", SETS)
    todo = [(data, way) for way in WAYS for data in sets]
    for number, (data, way) in enumerate(todo, 1):
        path = RESULTS / f"{data}-{way.replace(', ', '-').replace(' ', '-')}.json"
        if path.exists():
            continue
        print(f"{number} of {len(todo)}: {data}, {way}", file=sys.stderr, flush=True)
        write_atomically(path, pretty_json(measure(folder, data, way)))


if __name__ == "__main__":
    main()
