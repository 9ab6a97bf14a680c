"""Measure every method on real sets: one command, resumed by giving it again.

The default from noise and from real first images at ten images per class with three seeds, on six sets; then,
on three of them, every method under its ``quick`` settings, and the default and random images also at 1 and 50.
Each is measured by ``medistill evaluate`` on test images. What is measured already lies in
``docs/results/methods`` and is not measured again, but for methods that an earlier version distilled: those
began with real images, and their packages tell no resemblance. Packages and trained networks are kept in the
user's cache. ``make docs`` writes the table from it.

    python benchmarks/methods_table.py [FOLDER OF SETS] [SET ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sets import ROOT, distil_afresh, folder_and_sets, medistill_json

import medistill
from medistill.distil.method import methods
from medistill.distil.presets import presets
from medistill.files import pretty_json, user_cache, write_atomically

RESULTS = ROOT / "docs" / "results" / "methods"
SETS = ("breastmnist", "pneumoniamnist", "bloodcells_28")
STARTS_SETS = (
    "breastmnist",
    "chestxray_nih_28",
    "ct_sarscov2_28",
    "all_leukemia4_28",
    "pneumoniamnist",
    "bloodcells_28",
)
"""Sets on which both starts are compared; the quick ones first."""

DEFAULT, REAL_START = "default", "default-real-start"
OPTIONS = {DEFAULT: [], REAL_START: ["--set", "method.start=real"]}
"""What ``distill`` is asked for where no method is named."""

SCORES = ("arms", "gain_over_random", "gain_over_random_matched", "recovery", "recovery_above_baseline")
KEPT = (
    *SCORES, "task", "primary", "compression", "images", "test_images", "repeats", "random_draws", "recipe", "notes",
    "data",
)  # fmt: skip


def cells(sets: list[str]) -> list[tuple[str, str, int, int]]:
    """Set, method, images per class and seed of every package; what is asked first of the table comes first."""
    starts = [(s, name, 10, seed) for seed in (0, 1, 2) for s in sets for name in (DEFAULT, REAL_START)]
    whole = [s for s in sets if s in SETS]
    names = ["random", *(name for name in methods() if name != "random")]
    first = [(s, name, 10, 0) for name in names for s in whole]
    more = [
        (s, name, ipc, seed)
        for sizes in ((1, 10), (50,))  # the larger ones take longer than all others together
        for seed in (0, 1, 2)
        for ipc in sizes
        for name in (DEFAULT, REAL_START, "random")
        for s in whole
    ]
    return list(dict.fromkeys((*starts, *first, *more)))


def distilled(folder: Path, data: str, method: str, ipc: int, seed: int) -> tuple[Path, Any]:
    """A package and what ``distill`` said of it; made in a process of its own, so that memory is that of one command.

    The default from real images has the teachers of the default; all others are distilled with an empty cache.
    """
    # Not the folder of format version 1, whose packages this version would refuse to go on with.
    out = user_cache() / "methods-table-2" / f"{data}-{method}-ipc{ipc}-seed{seed}"
    asked = OPTIONS.get(method, ["--method", method])
    if "quick" in presets().get(method, []):
        asked = [*asked, "--preset", "quick"]
    given = ["--ipc", str(ipc), "--seed", str(seed), "--out", str(out), *asked]
    words = (str(folder / f"{data}.npz"), *given)
    return out, medistill_json("distill", *words) if method == REAL_START else distil_afresh(*words)


def measure(folder: Path, data: str, method: str, ipc: int, seed: int) -> dict[str, Any]:
    """Distil and evaluate one package; later seeds only show the spread, so random images are drawn less often."""
    out, made = distilled(folder, data, method, ipc, seed)
    fewer = ["--set", "random_draws=2"] if seed else []
    result = medistill_json("evaluate", str(out), "--on", str(folder / f"{data}.npz"), *fewer)
    return {
        "set": data, "method": method, "ipc": ipc, "seed": seed, "start": made["start"], "audits": made["audits"],
        "contains_real_images": made["contains_real_images"], "bytes": made["bytes"], "cost": made["cost"],
        "version": medistill.__version__, **{key: result[key] for key in KEPT},
    }  # fmt: skip


def is_measured(path: Path, method: str) -> bool:
    """Whether a file holds what this version would measure; what an earlier one distilled tells no start."""
    if not path.exists():
        return False
    chosen = method in methods() and methods()[method].info.kind == "coreset"
    return chosen or "start" in json.loads(path.read_text())


def main() -> None:
    """Measure what is missing."""
    folder, sets = folder_and_sets(__doc__ or "", STARTS_SETS)
    todo = cells(sets)
    for number, (data, method, ipc, seed) in enumerate(todo, 1):
        path = RESULTS / f"{data}-{method}-ipc{ipc}-seed{seed}.json"
        if is_measured(path, method):
            continue
        print(f"{number} of {len(todo)}: {data}, {method}, {ipc} per class, seed {seed}", file=sys.stderr, flush=True)
        write_atomically(path, pretty_json(measure(folder, data, method, ipc, seed)))


if __name__ == "__main__":
    main()
