"""Measure the default on findings, grades and volumes: one command, resumed by giving it again.

Ten images per class, grade or finding, seed 0; every command that a user would give one after another: ``check``,
``distill``, ``verify``, ``evaluate``, ``report``, ``train``. What ``evaluate`` measured on test images, and the
seconds of every command, lie in ``docs/results/tasks``; ``make docs`` writes the table from them.

    python benchmarks/tasks_table.py [FOLDER OF SETS] [SET ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from methods_table import KEPT
from sets import ROOT, distil_afresh, folder_and_sets, medistill_json

import medistill
from medistill.files import pretty_json, user_cache, write_atomically

RESULTS = ROOT / "docs" / "results" / "tasks"
SETS = ("fundus_dr3_28", "alz4_28", "odir5k_28", "adrenalmnist3d_28")
GRADES = ("alz4_28", "fundus_dr3_28")
"""Sets whose classes have an order, which no file says and nobody guesses."""


def measure(folder: Path, data: str) -> dict[str, Any]:
    """What every command says of a set, and how long it took."""
    source, seconds = str(folder / f"{data}.npz"), {}
    out = user_cache() / "tasks-table" / data
    task = ["--task", "ordinal"] if data in GRADES else []

    def run(command: str, *words: str) -> Any:
        begun = time.monotonic()
        print(f"{data}: {command}", file=sys.stderr, flush=True)
        answer = distil_afresh(*words) if command == "distill" else medistill_json(command, *words)
        seconds[command] = round(time.monotonic() - begun, 1)
        return answer

    run("check", source, "--ipc", "10", *task)
    made = run("distill", source, "--ipc", "10", "--out", str(out), "--overwrite", *task)
    run("verify", str(out))
    result = run("evaluate", str(out), "--on", source)
    run("report", str(out), "--on", source, "--out", str(out.with_suffix(".html")))
    trained = run("train", str(out), "--on", source)
    return {
        "set": data, "ipc": 10, "seed": 0, "start": made["start"], "audits": made["audits"], "bytes": made["bytes"],
        "distillation": made["cost"], "seconds": seconds, "trained": trained["metrics"],
        "version": medistill.__version__, **{key: result[key] for key in KEPT},
    }  # fmt: skip


def main() -> None:
    """Measure what is missing."""
    folder, sets = folder_and_sets(__doc__ or "", SETS)
    for data in sets:
        path = RESULTS / f"{data}-ipc10.json"
        if not path.exists():
            write_atomically(path, pretty_json(measure(folder, data)))


if __name__ == "__main__":
    main()
