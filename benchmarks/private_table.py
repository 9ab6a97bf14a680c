"""Measure differentially private packages beside what was published: one command, resumed by giving it again.

Ten images per class, δ = 1e-5, three draws of the noise at each ε: the private default, DP-MERF and kernel mean
matching (``private_opponents.py``), each evaluated on test images by ``medistill``'s own recipe. What is measured
already lies in ``docs/results/private`` and is not measured again. ``make docs`` writes the table from it.

    python benchmarks/private_table.py [FOLDER OF SETS] [SET ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import private_opponents  # noqa: F401 - registers them
from sets import ROOT, folder_and_sets

import medistill
from medistill.config import EvaluateConfig
from medistill.files import pretty_json, write_atomically

RESULTS = ROOT / "docs" / "results" / "private"
SETS = ("pneumoniamnist", "bloodcells_28", "all_leukemia4_28", "ct_sarscov2_28", "alz4_28", "oct_dme_28")
TASKS = {"alz4_28": "ordinal"}
EPSILONS = (8.0, 1.0)
DRAWS = 3
METHODS = ("default", "dp-merf", "kernel-mean")
KEPT = ("arms", "gain_over_random", "recovery", "task", "primary", "images", "test_images", "repeats", "random_draws")


def measure(folder: Path, data: str, method: str, epsilon: float) -> dict[str, Any]:
    """One package, with noise of its own, and what it is worth."""
    asked: dict[str, Any] = {"data": {"task": TASKS[data]}} if data in TASKS else {}
    if method != "default":
        # As published, they spend the whole budget on the classes' sums.
        asked |= {"factor": 2, "privacy": {"centre_share": 0}}
    path = folder / f"{data}.npz"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "package"
        made = medistill.distill(
            path, out=out, method=None if method == "default" else method, ipc=10, epsilon=epsilon, settings=asked
        )
        package = medistill.read_package(out)
        result = medistill.evaluate(out, on=path, config=EvaluateConfig())
    guarantee = package.manifest.privacy.guarantee
    assert guarantee is not None
    return {
        "set": data, "method": method, "epsilon": epsilon, "guarantee": guarantee.model_dump(mode="json"),
        "configuration": package.manifest.provenance.configuration.model_dump(mode="json"),
        "cost": made["cost"], "bytes": made["bytes"], "version": medistill.__version__,
        **{key: result[key] for key in KEPT},
    }  # fmt: skip


def main() -> None:
    """Measure what is missing."""
    folder, sets = folder_and_sets(__doc__ or "", SETS)
    todo = [
        (data, method, epsilon, draw)
        for draw in range(DRAWS)
        for data in sets
        for epsilon in EPSILONS
        for method in METHODS
    ]
    for number, (data, method, epsilon, draw) in enumerate(todo, 1):
        path = RESULTS / f"{data}-{method}-eps{epsilon:g}-draw{draw}.json"
        if path.exists():
            continue
        print(f"{number} of {len(todo)}: {data}, {method}, ε = {epsilon:g}, draw {draw}", file=sys.stderr, flush=True)
        write_atomically(path, pretty_json(json.loads(json.dumps(measure(folder, data, method, epsilon)))))


if __name__ == "__main__":
    main()
