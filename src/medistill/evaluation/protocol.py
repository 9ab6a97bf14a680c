"""The comparison: four arms, one recipe, the same test images, intervals that are paired."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medistill.config import EvaluateConfig, LabelConfig
from medistill.data.dataset import Dataset
from medistill.data.preprocess import Part, Prepared, prepare_split
from medistill.errors import DataError
from medistill.evaluation import arms
from medistill.evaluation.align import is_source
from medistill.evaluation.cache import Run
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain, number, recovery
from medistill.evaluation.metrics import METRICS, chance, details
from medistill.evaluation.robustness import robustness
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.nets.training import Statistics
from medistill.package.package import Package, decoded, encoded
from medistill.progress import Progress
from medistill.types import Json, Labels

ALIKE = "random_stored_alike"
"""Random real images stored as the package's are, as many, in as many bytes, with labels of the same kind."""

ARMS = ("distilled", "random", ALIKE, "full", "full_balanced")
"""In the order of tables. Only a package with smaller images or soft labels has the third; the last is a reference
for the first kind of network only."""


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
    others: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    """Runs of further networks, by network and arm."""
    sites: dict[str, Comparison] = field(default_factory=dict)
    """The same trained networks asked for the images of other sites."""
    robustness: Json | None = None
    """DD-Ranking's scores, where they were asked for."""

    @property
    def arms(self) -> list[str]:
        """Names of the arms that there are, in the order of :data:`ARMS`."""
        return [arm for arm in ARMS if arm in self.runs]

    @cached_property
    def bootstrap(self) -> dict[str, Bootstrap]:
        """Every arm measured on the same bootstrap samples of the test images."""
        key = Key(self.config.seed).child("bootstrap")
        weights = bootstrap_weights(len(self.labels), self.config.bootstrap, key, self.patients)
        return {
            arm: Bootstrap.of([r.probabilities for r in self.runs[arm]], self.labels, weights, key.child(arm))
            for arm in self.arms
        }

    def as_json(self) -> Json:
        """Everything measured, as documented at ``medistill.evaluate``."""
        transfer = {net: replace(self, runs=runs)._scores() for net, runs in self.others.items()}
        return {
            **self._scores(),
            "net": self.config.nets[0],
            "transfer": transfer,
            "sites": {name: {**site._scores(), "test_images": len(site.labels)} for name, site in self.sites.items()},
            "robustness": self.robustness,
            "chance": {m: number(v) for m, v in self._chance.items()},
            "details": {
                arm: details([run.probabilities for run in self.runs[arm]], self.labels) for arm in self.arms
            },
            "curves": {arm: [run.curve.tolist() for run in self.runs[arm]] for arm in self.arms},
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

    @cached_property
    def _chance(self) -> dict[str, float]:
        return chance(self.train_labels, self.labels, len(self.class_names))

    def _scores(self) -> Json:
        """What one kind of network reached."""
        measured = self.bootstrap
        floor = self._chance
        plain = {m: recovery(measured["distilled"], measured["full"], m) for m in METRICS}
        above = {m: recovery(measured["distilled"], measured["full"], m, floor[m]) for m in METRICS}
        gains = {arm: {m: gain(measured["distilled"], measured[arm], m) for m in METRICS} for arm in self.arms}
        return {
            "arms": {arm: {m: measured[arm].summary(m) for m in METRICS} for arm in self.arms},
            "recovery": {m: plain[m]["mean"] for m in METRICS},
            "recovery_ci95": {m: plain[m]["ci95"] for m in METRICS},
            "recovery_above_chance": {m: above[m]["mean"] for m in METRICS},
            "recovery_above_chance_ci95": {m: above[m]["ci95"] for m in METRICS},
            "gain_over_random": gains["random"],
            "gain_over_random_stored_alike": gains.get(ALIKE),
        }


def compare(
    package: Package,
    prepared: Prepared,
    config: EvaluateConfig,
    notes: list[str],
    progress: bool,
    sites: Mapping[str, Dataset] | None = None,
    keep_networks: bool = False,
) -> Comparison:
    """Train every arm, or take it from the cache, and collect the predictions.

    Args:
        package: as read back.
        prepared: the data set at the package's size, classes aligned.
        config: recipe, repetitions, seed.
        notes: what a reader should know about the comparison.
        progress: show progress on standard error.
        sites: data of other places by name, classes aligned; the networks trained here are asked for them too.
        keep_networks: keep the networks in the cache, for sites that will be asked about later.

    Raises:
        DataError: the data set, or a site's, has no test images.
    """
    sites = sites or {}
    for dataset in (prepared.dataset, *sites.values()):
        if "test" not in dataset.splits:
            raise DataError(
                "has no test images", where=dataset.description.name, remedy="add a test split to evaluate on"
            )
    contest = _arms(package, prepared, config, progress)
    classes = len(package.class_names)

    def train_all(
        label: str, contest: list[arms.Arm], config: EvaluateConfig = config, keep: bool = False
    ) -> dict[str, dict[str, list[Run]]]:
        with Progress(label, 0, enabled=progress) as shown:

            def news(total: int, done: int, finished: int, networks: int) -> None:
                shown.reach(total, done, f"({finished} of {networks} networks)")

            return arms.train_all(contest, classes, config, news, keep)

    runs = train_all("evaluating", contest, keep=keep_networks or bool(sites))
    test = prepared.dataset.splits["test"]
    same = is_source(package, prepared.dataset)
    if not same:
        notes = [*notes, "these are not the data that the package was made from"]
    comparison = Comparison(
        runs[config.nets[0]],
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
            "images": plain_counts(package).sum() / len(prepared.train),
            "stored_images": len(package.labels) / len(prepared.train),
            "bytes": package.size_bytes / original_bytes(prepared.train),
        },
        notes,
        {net: runs[net] for net in config.nets[1:]},
    )
    # One after the other: the first site trains what no earlier evaluation kept, the next ones find it.
    first = config.model_copy(update={"nets": config.nets[:1]})
    elsewhere = {}
    for name, dataset in sites.items():
        there = [replace(arm, exam=_exam_at(dataset, package, prepared, arm)) for arm in contest]
        asked = dataset.splits["test"]
        elsewhere[name] = replace(
            comparison,
            runs=train_all(f"asking about {name}", there, first, keep=True)[first.nets[0]],
            labels=asked.labels,
            patients=asked.patients,
            others={},
        )
    scores = None
    if config.robust_scores:
        by_name = {arm.name: arm for arm in contest}
        scores = robustness(
            by_name["distilled"],
            by_name.get(ALIKE, by_name["random"]),
            comparison.runs,
            comparison.labels,
            first,
            lambda label, more, how: train_all(label, more, how)[first.nets[0]],
        )
    return replace(comparison, sites=elsewhere, robustness=scores)


def plain_counts(package: Package) -> npt.NDArray[np.int64]:
    """Images per class of the networks' size whose pixels take the bytes of the package's."""
    counts = np.bincount(package.labels, minlength=len(package.class_names))
    share = np.prod(package.pixels.shape[2:]) / np.prod(package.preprocessing.size)
    return np.array(same_bytes(counts.tolist(), float(share)), dtype=np.int64)


def same_bytes(counts: Sequence[int], share: float) -> list[int]:
    """How many whole images have the bytes of so many images that have each a ``share`` of their pixels.

    >>> same_bytes([40, 25], 1 / 4)
    [10, 7]
    """
    return [math.ceil(count * share - 1e-9) for count in counts]


def _exam_at(site: Dataset, package: Package, prepared: Prepared, arm: arms.Arm) -> arms.Exam:
    """Another site's test images, prepared as the arm's training images were."""
    how = package.preprocessing if arm.name == "distilled" else prepared.preprocessing
    return arms.Exam(prepare_split(site.splits["test"], how), None, arm.exam.statistics)


def _arms(package: Package, prepared: Prepared, config: EvaluateConfig, progress: bool) -> list[arms.Arm]:
    """The recipient trains with the package's statistics, the owner of the data with their own."""
    flips = package.manifest["flips"]
    own = prepared.preprocessing
    exam = arms.Exam(prepared.parts["test"], prepared.parts.get("val"), Statistics(own.mean, own.std, flips))
    theirs = package.preprocessing
    raw = prepared.dataset.splits
    sent = arms.Exam(
        prepare_split(raw["test"], theirs),
        prepare_split(raw["val"], theirs) if "val" in raw else None,
        Statistics(theirs.mean, theirs.std, flips),
    )
    counts = plain_counts(package).tolist()
    key = Key(config.seed)
    draws = [arms.subset(prepared.train, counts, key.child("random", i)) for i in range(config.draws(sum(counts)))]
    even = [arms.balanced(prepared.train, key.child("balanced", i)) for i in range(config.networks)]
    alike = _stored_alike(package, prepared, exam.statistics, config, progress)
    return [
        arms.Arm("distilled", (package.part,) * config.networks, sent),
        arms.Arm("random", tuple(draws), exam),
        *([arms.Arm(ALIKE, tuple(alike), exam)] if alike else []),
        arms.Arm("full", (prepared.train,) * config.networks, exam),
        arms.Arm("full_balanced", tuple(even), exam, first_only=True),
    ]


def _stored_alike(
    package: Package, prepared: Prepared, statistics: Statistics, config: EvaluateConfig, progress: bool
) -> list[Part]:
    """Draws of random images, each stored and labelled as the package's are; none where that is the random arm.

    Labels by teachers are an option that random images can have too; labels that a method learned are its own work.
    """
    size, stored = package.preprocessing.size, package.pixels.shape[2:]
    labels = LabelConfig.model_validate(package.manifest["configuration"]["labels"])
    if stored == size and not labels.teachers:
        return []
    counts = np.bincount(package.labels, minlength=len(package.class_names)).tolist()
    key = Key(config.seed)
    drawn = []
    for index in range(config.draws(sum(counts))):
        part = arms.subset(prepared.train, counts, key.child("random", index))
        drawn.append(Part(decoded(encoded(part.pixels, (stored[0], stored[1])), size), part.labels))
    if not labels.teachers:
        return drawn
    seed = int(package.manifest["seed"])
    with Progress("labelling random images as the package's are", 0, enabled=progress) as shown:
        each = soft_labels(prepared.train, drawn, statistics, len(counts), labels, seed, shown.reach)
    return [replace(part, soft_labels=soft) for part, soft in zip(drawn, each, strict=True)]


def original_bytes(part: Part) -> int:
    """Bytes of the original training images as a compressed ``.npz`` would store them.

    Large sets are sampled evenly, at most about 64 MB of pixels, and scaled up.
    """
    stride = max(1, part.pixels.nbytes // 2**26)
    sample = np.ascontiguousarray(part.pixels[::stride])
    return round(len(zlib.compress(sample.tobytes(), 6)) * len(part) / len(sample)) + len(part)
