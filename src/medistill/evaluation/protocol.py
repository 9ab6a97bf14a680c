"""The comparison: four arms, one recipe, the same test images, intervals that are paired."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medistill.config import EvaluateConfig
from medistill.data.preprocess import Part, Prepared
from medistill.errors import DataError
from medistill.evaluation import arms
from medistill.evaluation.align import is_source
from medistill.evaluation.cache import Run
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain, number, recovery
from medistill.evaluation.metrics import METRICS, chance, details
from medistill.keys import Key
from medistill.nets.training import Statistics
from medistill.package.package import Package
from medistill.progress import Progress
from medistill.types import Json, Labels

ARMS = ("distilled", "random", "full", "full_balanced")


@dataclass(frozen=True)
class Comparison:
    """The trained runs of every arm and what follows from them."""

    runs: dict[str, list[Run]]
    images: dict[str, int]
    labels: Labels
    train_labels: Labels
    patients: npt.NDArray[np.str_] | None
    class_names: tuple[str, ...]
    config: EvaluateConfig
    data: Json
    compression: Json
    notes: list[str]

    @cached_property
    def bootstrap(self) -> dict[str, Bootstrap]:
        """Every arm measured on the same bootstrap samples of the test images."""
        key = Key(self.config.seed).child("bootstrap")
        weights = bootstrap_weights(len(self.labels), self.config.bootstrap, key, self.patients)
        return {
            arm: Bootstrap.of([r.probabilities for r in self.runs[arm]], self.labels, weights, key.child(arm))
            for arm in ARMS
        }

    def details(self, arm: str) -> Json:
        """Per-class recall and calibration error as means over runs, confusion as a sum."""
        each = [details(run.probabilities, self.labels) for run in self.runs[arm]]
        recall = np.array([[np.nan if r is None else r for r in d["recall"]] for d in each])
        return {
            "recall": [None if np.isnan(column).all() else float(column.mean()) for column in recall.T],
            "confusion": np.sum([d["confusion"] for d in each], axis=0).tolist(),
            "calibration_error": float(np.mean([d["calibration_error"] for d in each])),
        }

    def as_json(self) -> Json:
        """Everything measured, as documented at ``medistill.evaluate``."""
        measured = self.bootstrap
        floor = chance(self.train_labels, self.labels, len(self.class_names))
        plain = {m: recovery(measured["distilled"], measured["full"], m) for m in METRICS}
        above = {m: recovery(measured["distilled"], measured["full"], m, floor[m]) for m in METRICS}
        return {
            "arms": {arm: {m: measured[arm].summary(m) for m in METRICS} for arm in ARMS},
            "recovery": {m: plain[m]["mean"] for m in METRICS},
            "recovery_ci95": {m: plain[m]["ci95"] for m in METRICS},
            "recovery_above_chance": {m: above[m]["mean"] for m in METRICS},
            "recovery_above_chance_ci95": {m: above[m]["ci95"] for m in METRICS},
            "gain_over_random": {m: gain(measured["distilled"], measured["random"], m) for m in METRICS},
            "chance": {m: number(floor[m]) for m in METRICS},
            "details": {arm: self.details(arm) for arm in ARMS},
            "curves": {arm: [run.curve.tolist() for run in self.runs[arm]] for arm in ARMS},
            "compression": self.compression,
            "images": self.images,
            "test_images": len(self.labels),
            "class_names": list(self.class_names),
            "data": self.data,
            "recipe": self.config.recipe.model_dump(mode="json"),
            "networks": self.config.networks,
            "random_draws": len(self.runs["random"]),
            "seed": self.config.seed,
            "notes": self.notes,
        }


def compare(
    package: Package, prepared: Prepared, config: EvaluateConfig, notes: list[str], progress: bool
) -> Comparison:
    """Train every arm, or take it from the cache, and collect the predictions.

    Args:
        package: as read back.
        prepared: the data set at the package's size, classes aligned.
        config: recipe, repetitions, seed.
        notes: what a reader should know about the comparison.
        progress: show progress on standard error.

    Raises:
        DataError: the data set has no test images.
    """
    if "test" not in prepared.parts:
        raise DataError(
            "has no test images",
            where=prepared.dataset.description.name,
            remedy="add a test split to evaluate on",
        )
    contest = _arms(package, prepared, config)
    networks = sum(len(arm.sets) for arm in contest)
    with Progress("evaluating", 0, enabled=progress) as shown:

        def news(total: int, done: int, finished: int) -> None:
            shown.total = total
            shown.advance(done - shown.done, f"({finished} of {networks} networks)")

        runs = arms.train_all(contest, len(package.class_names), config, news)
    test = prepared.dataset.splits["test"]
    same = is_source(package, prepared.dataset)
    if not same:
        notes = [*notes, "these are not the data that the package was made from"]
    return Comparison(
        runs,
        {arm.name: len(arm.sets[0]) for arm in contest},
        prepared.parts["test"].labels,
        prepared.train.labels,
        test.patients,
        package.class_names,
        config,
        {
            "name": prepared.dataset.description.name,
            "fingerprint": prepared.dataset.fingerprint["sha256"],
            "same_as_distilled": same,
        },
        {
            "images": len(package.labels) / len(prepared.train),
            "bytes": package.size_bytes / original_bytes(prepared.train),
        },
        notes,
    )


def _arms(package: Package, prepared: Prepared, config: EvaluateConfig) -> list[arms.Arm]:
    """The recipient trains with the package's statistics, the owner of the data with their own."""
    flips = package.manifest["flips"]
    own = prepared.preprocessing
    exam = arms.Exam(prepared.parts["test"], prepared.parts.get("val"), Statistics(own.mean, own.std, flips))
    theirs = package.preprocessing
    raw = prepared.dataset.splits
    sent = arms.Exam(
        Part(theirs.apply(raw["test"].images), raw["test"].labels),
        Part(theirs.apply(raw["val"].images), raw["val"].labels) if "val" in raw else None,
        Statistics(theirs.mean, theirs.std, flips),
    )
    counts = np.bincount(package.labels, minlength=len(package.class_names)).tolist()
    key = Key(config.seed)
    draws = [arms.subset(prepared.train, counts, key.child("random", i)) for i in range(config.draws(sum(counts)))]
    even = [arms.balanced(prepared.train, key.child("balanced", i)) for i in range(config.networks)]
    return [
        arms.Arm("distilled", (package.part,) * config.networks, sent),
        arms.Arm("random", tuple(draws), exam),
        arms.Arm("full", (prepared.train,) * config.networks, exam),
        arms.Arm("full_balanced", tuple(even), exam),
    ]


def original_bytes(part: Part) -> int:
    """Bytes of the original training images as a compressed ``.npz`` would store them.

    Large sets are sampled evenly, at most about 64 MB of pixels, and scaled up.
    """
    stride = max(1, part.pixels.nbytes // 2**26)
    sample = np.ascontiguousarray(part.pixels[::stride])
    return round(len(zlib.compress(sample.tobytes(), 6)) * len(part) / len(sample)) + len(part)
