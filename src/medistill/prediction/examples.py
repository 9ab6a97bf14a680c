"""Examples to learn from: the runs of studies that hold features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path

from medistill.errors import DataError
from medistill.files import canonical_json
from medistill.prediction.features import VERSION
from medistill.prediction.indicator import FULL, METRICS, RANDOM, Example
from medistill.records.records import RunRecord, current
from medistill.records.store import Store
from medistill.tasks.task import tasks

METRIC = "balanced_accuracy"


RANDOM_METHOD = "random"
"""What random images are called here, whatever a study calls them."""


def shipped() -> list[Path]:
    """The database of the study that the tool comes with, where it does."""
    path = Path(str(resources.files("medistill.prediction"))) / "basis.db"
    return [path] if path.exists() else []


def examples_of(runs: Iterable[RunRecord]) -> list[Example]:
    """What distilled packages measured; where a metric is not defined there is nothing to learn."""
    examples = []
    for run in filter(_can_be_used, runs):
        values = {
            "balanced_accuracy": run.value("level", METRIC),
            "auroc": run.value("level", "auroc"),
            "recovery": run.value("recovery", METRIC),
            "gain": run.value("gain", METRIC),
        }
        arms = {
            name: {metric: run.level(arm, metric) for metric in METRICS}
            for name, arm in ((RANDOM, "random"), (FULL, "full"))
        }
        defined = {name: v for name, v in values.items() if v is not None}
        levels = {name: {m: v for m, v in by_metric.items() if v is not None} for name, by_metric in arms.items()}
        if len(defined) == len(values) and all(len(by_metric) == len(METRICS) for by_metric in levels.values()):
            method = RANDOM_METHOD if run.is_random else run.method
            examples.append(
                Example(
                    run.group,
                    run.data,
                    method,
                    run.distil,
                    dict(run.features or {}),
                    defined,
                    levels,
                    run.task,
                    run.start,
                )
            )
    return examples


def learned_from(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs that the indicator can use: packages that were measured, of data whose features are known, computed as
    they are now.
    """
    return [run for run in current(runs) if _can_be_used(run)]


def _can_be_used(run: RunRecord) -> bool:
    described = run.features is not None and run.features_version == VERSION
    # Levels are seen relative to guessing among classes that exclude each other; small networks see pictures.
    task = tasks().get(run.task)  # perhaps of a package that is not installed here
    alike = run.dimensions == 2 and task is not None and task.exclusive
    return run.status == "done" and run.kind == "distilled" and described and alike


def read_examples(paths: Iterable[Path]) -> list[Example]:
    """The examples of several databases, each run once; origins that share data are one, and what a later database
    calls by the name of another method of an earlier one gets the database's name too.

    Raises:
        DataError: a path is no study's database, or packages were evaluated by different recipes or networks.
    """
    runs: dict[str, RunRecord] = {}
    meant: dict[str, str] = {}
    recipes: dict[str, Path] = {}
    for path in paths:
        with Store(path) as store:
            for run in learned_from(store.runs()):
                runs.setdefault(run.identity, _distinguished(run, path, meant))
                recipes.setdefault(run.recipe, path)
    if len(recipes) > 1:
        raise DataError(
            "holds packages that were evaluated by another recipe or with another network",
            where=list(recipes.values())[-1],
            remedy="such levels cannot be learned from together; evaluate by the default recipe, with convnet first",
        )
    return examples_of(joined(list(runs.values())))


def _distinguished(run: RunRecord, path: Path, meant: dict[str, str]) -> RunRecord:
    distil = run.specification["determined"].get("distil", {})
    settings = canonical_json({k: v for k, v in distil.items() if k in ("method", "factor", "labels")})
    name, settings = (RANDOM_METHOD, "") if run.is_random else (run.method, settings)
    return run if meant.setdefault(name, settings) == settings else replace(run, method=f"{run.method} ({path.stem})")


def joined(runs: list[RunRecord]) -> list[RunRecord]:
    """The same runs, where groups that hold the same data have one name."""
    name = {run.group: run.group for run in runs}

    def of(group: str) -> str:
        return group if name[group] == group else of(name[group])

    holder: dict[str, str] = {}
    for run in runs:
        first = holder.setdefault(run.data_identity, run.group)
        name[of(run.group)] = of(first)
    return [replace(run, group=of(run.group)) for run in runs]
