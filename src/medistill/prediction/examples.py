"""Examples to learn from: the runs of studies that hold features."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from medistill.prediction.indicator import FULL, METRICS, RANDOM, Example
from medistill.store import Record, Store

METRIC = "balanced_accuracy"


def shipped() -> Path:
    """The database of the study that the tool comes with."""
    return Path(str(resources.files("medistill.prediction"))) / "basis.db"


def examples_of(runs: Iterable[Record]) -> list[Example]:
    """Runs that are done, with what they measured; runs whose full training is at chance have no recovery."""
    found = []
    for run in runs:
        result = run.result
        if run.status != "done" or run.kind != "distilled" or not result or not result.get("features"):
            continue
        level = result["arms"]["distilled"]
        values = {
            "balanced_accuracy": level[METRIC]["mean"],
            "auroc": level["auroc"]["mean"],
            "recovery": result["recovery"][METRIC],
            "gain": result["gain_over_random"][METRIC]["mean"],
        }
        arms = {
            name: {metric: result["arms"][arm][metric]["mean"] for metric in METRICS}
            for name, arm in ((RANDOM, "random"), (FULL, "full"))
        }
        if None not in [*values.values(), *arms[RANDOM].values(), *arms[FULL].values()]:
            found.append(Example(run.group, run.data, run.method, result["features"], values, arms))
    return found


def read_examples(paths: Iterable[Path]) -> list[Example]:
    """The examples of several databases, each run once.

    Raises:
        DataError: a path is no study's database.
    """
    runs: dict[str, Record] = {}
    for path in paths:
        with Store(path) as store:
            runs |= {run.identity: run for run in store.runs("done")}
    return examples_of(runs.values())
