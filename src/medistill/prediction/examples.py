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
from medistill.store import Record, Store, current

METRIC = "balanced_accuracy"


RANDOM_METHOD = "random"
"""What random images are called here, whatever a study calls them."""


def shipped() -> list[Path]:
    """The database of the study that the tool comes with, where it does."""
    path = Path(str(resources.files("medistill.prediction"))) / "basis.db"
    return [path] if path.exists() else []


def examples_of(runs: Iterable[Record]) -> list[Example]:
    """What distilled packages measured; where a metric is not defined there is nothing to learn."""
    found = []
    for run in filter(_can_be_used, runs):
        result = run.result or {}
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
            method = RANDOM_METHOD if run.is_random else run.method
            found.append(Example(run.group, run.data, method, run.distil, result["features"], values, arms))
    return found


def learned_from(runs: Iterable[Record]) -> list[Record]:
    """The runs that the indicator can use: packages that were measured, of data whose features are known, computed as
    they are now.
    """
    return [run for run in current(runs) if _can_be_used(run)]


def _can_be_used(run: Record) -> bool:
    result = run.result or {}
    known = result.get("features") and result.get("features_version") == VERSION
    return run.status == "done" and run.kind == "distilled" and bool(known)


def read_examples(paths: Iterable[Path]) -> list[Example]:
    """The examples of several databases, each run once; origins that share data are one, and what a later database
    calls by the name of another method of an earlier one gets the database's name too.

    Raises:
        DataError: a path is no study's database, or packages were evaluated by different recipes or networks.
    """
    runs: dict[str, Record] = {}
    meant: dict[str, str] = {}
    recipes: dict[str, Path] = {}
    for path in paths:
        with Store(path) as store:
            for run in learned_from(store.runs()):
                runs.setdefault(run.identity, _told_apart(run, path, meant))
                recipes.setdefault(recipe_of(run), path)
    if len(recipes) > 1:
        raise DataError(
            "holds packages that were evaluated by another recipe or with another network",
            where=list(recipes.values())[-1],
            remedy="such levels cannot be learned from together; evaluate by the default recipe, with convnet first",
        )
    return examples_of(joined(list(runs.values())))


def _told_apart(run: Record, path: Path, meant: dict[str, str]) -> Record:
    distil = run.specification["determined"].get("distil", {})
    settings = canonical_json({k: v for k, v in distil.items() if k in ("method", "factor", "labels")})
    name, settings = (RANDOM_METHOD, "") if run.is_random else (run.method, settings)
    return run if meant.setdefault(name, settings) == settings else replace(run, method=f"{run.method} ({path.stem})")


def recipe_of(run: Record) -> str:
    """By what levels can be compared: the recipe and network of its evaluation."""
    how = run.specification["evaluate"]
    return canonical_json([how["recipe"], how["nets"][0]])


def joined(runs: list[Record]) -> list[Record]:
    """The same runs, where groups that hold the same data have one name."""
    name = {run.group: run.group for run in runs}

    def of(group: str) -> str:
        return group if name[group] == group else of(name[group])

    holder: dict[str, str] = {}
    for run in runs:
        first = holder.setdefault(run.data_identity, run.group)
        name[of(run.group)] = of(first)
    return [replace(run, group=of(run.group)) for run in runs]
