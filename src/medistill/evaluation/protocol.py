"""The comparison: some arms, one recipe, the same test images, intervals that are paired."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medistill.aliases import Targets
from medistill.config import EvaluateConfig
from medistill.data.dataset import Dataset
from medistill.data.image import decoded, encoded
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare_split
from medistill.errors import DataError
from medistill.evaluation import arms
from medistill.evaluation.arms import MATCHED, Arm, EvaluationData
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.estimate import comparison_seconds
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain, number, recovery
from medistill.evaluation.robustness import robustness
from medistill.evaluation.teachers import FIRST_INDEX, Shown, balanced_set, restored, soft_labels
from medistill.keys import Key
from medistill.package.package import Package
from medistill.package.results import Details, EvaluatedData, EvaluationResult, Scores, SiteScores
from medistill.package.source import is_source
from medistill.progress import Progress, duration, say
from medistill.tasks.task import Task

ARMS = ("distilled", "random", MATCHED, "full", "full_balanced")
"""In the order of tables. Only a package with smaller images or soft labels has the third; the last is a reference
for the first kind of network only."""


@dataclass(frozen=True)
class Comparison:
    """The trained runs of every arm and what follows from them."""

    task: Task
    runs: dict[str, list[TrainedRun]]
    images: dict[str, int]
    targets: Targets
    train_targets: Targets
    patients: npt.NDArray[np.str_] | None
    config: EvaluateConfig
    data: EvaluatedData
    compression: dict[str, float]
    notes: list[str]
    others: dict[str, dict[str, list[TrainedRun]]] = field(default_factory=dict)
    """Runs of further networks, by network and arm."""
    sites: dict[str, Comparison] = field(default_factory=dict)
    """The same trained networks asked for the images of other sites."""
    robustness: dict[str, float] | None = None
    """DD-Ranking's scores, where they were asked for."""

    @property
    def arms(self) -> list[str]:
        """Names of the arms that there are, in the order of :data:`ARMS`."""
        return [arm for arm in ARMS if arm in self.runs]

    @cached_property
    def bootstrap(self) -> dict[str, Bootstrap]:
        """Every arm measured on the same bootstrap samples of the test images."""
        key = Key(self.config.seed).child("bootstrap")
        weights = bootstrap_weights(len(self.targets), self.config.bootstrap, key, self.patients)
        return {
            arm: Bootstrap.of(
                self.task, [r.probabilities for r in self.runs[arm]], self.targets, weights, key.child(arm)
            )
            for arm in self.arms
        }

    def result(self) -> EvaluationResult:
        """Everything measured, as documented at ``medistill.evaluate``."""
        sites = {
            name: SiteScores(**dict(site.scores()), test_images=len(site.targets))
            for name, site in self.sites.items()
        }
        return EvaluationResult(
            **dict(self.scores()),
            task=self.task.kind,
            class_names=list(self.task.class_names),
            primary=self.task.primary,
            architecture=self.config.architectures[0],
            transfer={name: replace(self, runs=runs).scores() for name, runs in self.others.items()},
            sites=sites,
            robustness=self.robustness,
            majority_baseline={m: number(v) for m, v in self._baseline.items()},
            details={
                arm: Details(**self.task.details([run.probabilities for run in self.runs[arm]], self.targets))
                for arm in self.arms
            },
            curves={arm: [defined_points(run) for run in self.runs[arm]] for arm in self.arms},
            compression=self.compression,
            images=self.images,
            test_images=len(self.targets),
            data=self.data,
            recipe=self.config.recipe.model_dump(mode="json"),
            repeats=self.config.repeats,
            random_draws=len(self.runs["random"]),
            seed=self.config.seed,
            notes=self.notes,
        )

    @cached_property
    def _baseline(self) -> dict[str, float]:
        return self.task.majority_baseline(self.train_targets, self.targets)

    def scores(self) -> Scores:
        """What one kind of network reached."""
        measured, metrics = self.bootstrap, self.task.metric_names
        plain = {m: recovery(measured["distilled"], measured["full"], m) for m in metrics}
        above = {m: recovery(measured["distilled"], measured["full"], m, self._baseline[m]) for m in metrics}
        gains = {arm: {m: gain(measured["distilled"], measured[arm], m) for m in metrics} for arm in self.arms}
        return Scores(
            arms={arm: measured[arm].summaries() for arm in self.arms},
            recovery={m: plain[m].mean for m in metrics},
            recovery_ci95={m: plain[m].ci95 for m in metrics},
            recovery_above_baseline={m: above[m].mean for m in metrics},
            recovery_above_baseline_ci95={m: above[m].ci95 for m in metrics},
            gain_over_random=gains["random"],
            gain_over_random_matched=gains.get(MATCHED),
        )


def defined_points(run: TrainedRun) -> list[list[float]]:
    """A learning curve without points whose images do not define the metric, as findings that none of them has."""
    points: list[list[float]] = run.curve[np.isfinite(run.curve).all(axis=1)].tolist()
    return points


def compare(
    package: Package,
    prepared: PreparedDataset,
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
    task = package.task

    def train_all(
        label: str,
        contest: list[Arm],
        config: EvaluateConfig = config,
        keep: bool = False,
        each_arm: bool = False,
    ) -> dict[str, dict[str, list[TrainedRun]]]:
        with Progress(label, 0, enabled=progress) as shown:

            def news(total: int, done: int, finished: int, networks: int) -> None:
                shown.reach(total, done, f"({finished} of {networks} networks)")

            def is_done(architecture: str, arm: str, runs: list[TrainedRun]) -> None:
                if each_arm:
                    of = "" if len(config.architectures) == 1 else f" ({architecture})"
                    shown.note(f"{arm}{of}: {_mean_score(task, runs, test.targets)}")

            return arms.train_all(contest, task, config, news, keep, is_done)

    test = prepared.dataset.splits["test"]
    runs = train_all("evaluating", contest, keep=keep_networks or bool(sites), each_arm=True)
    same = is_source(package, prepared.dataset)
    if not same:
        notes = [*notes, "these are not the data that the package was made from"]
    comparison = Comparison(
        task,
        runs[config.architectures[0]],
        {arm.name: len(arm.sets[0]) for arm in contest},
        test.targets,
        prepared.train.targets,
        test.patients,
        config,
        EvaluatedData(
            name=prepared.dataset.description.name,
            fingerprint=prepared.dataset.fingerprint["sha256"],
            same_as_distilled=same,
        ),
        {
            "images": sum(plain_counts(package)) / len(prepared.train),
            "stored_images": len(package) / len(prepared.train),
            "bytes": package.size_bytes / original_bytes(prepared.train),
        },
        notes,
        {name: runs[name] for name in config.architectures[1:]},
    )
    # One after the other: the first site trains what no earlier evaluation kept, the next ones find it.
    first = config.model_copy(update={"architectures": config.architectures[:1]})
    elsewhere = {}
    for name, dataset in sites.items():
        there = [replace(arm, asked=_asked_at(dataset, package, prepared, arm)) for arm in contest]
        asked = dataset.splits["test"]
        elsewhere[name] = replace(
            comparison,
            runs=train_all(f"asking about {name}", there, first, keep=True)[first.architectures[0]],
            targets=asked.targets,
            patients=asked.patients,
            others={},
        )
    scores = None
    if config.robust_scores:
        by_name = {arm.name: arm for arm in contest}
        scores = robustness(
            by_name["distilled"],
            by_name.get(MATCHED, by_name["random"]),
            comparison.runs,
            task,
            comparison.targets,
            first,
            lambda label, more, how: train_all(label, more, how)[first.architectures[0]],
        )
    return replace(comparison, sites=elsewhere, robustness=scores)


def _mean_score(task: Task, runs: Sequence[TrainedRun], targets: Targets) -> str:
    scores = [task.scores(run.probabilities, targets)[task.primary] for run in runs]
    return f"{task.primary.replace('_', ' ')} {np.mean(scores):.3f} ({len(runs)} networks)"


def plain_counts(package: Package) -> list[int]:
    """Images per stratum of the networks' size whose pixels take the bytes of the package's."""
    share = math.prod(package.stored_shape) / package.preprocessing.image.pixels
    return same_bytes(package.synthetic_per_stratum, share)


def same_bytes(counts: Sequence[int], share: float) -> list[int]:
    """How many whole images have the bytes of so many images that have each a ``share`` of their pixels.

    >>> same_bytes([40, 25], 1 / 4)
    [10, 7]
    """
    return [math.ceil(count * share - 1e-9) for count in counts]


def _asked_at(site: Dataset, package: Package, prepared: PreparedDataset, arm: Arm) -> EvaluationData:
    """Another site's test images, prepared as the arm's training images were."""
    how = package.preprocessing if arm.name == "distilled" else prepared.preprocessing
    return EvaluationData(prepare_split(site.splits["test"], how), None, arm.asked.normalisation)


def _asked(package: Package, prepared: PreparedDataset) -> tuple[EvaluationData, EvaluationData]:
    """Test and validation images with the statistics of the data's owner, and with those of the package."""
    theirs, raw = package.preprocessing, prepared.dataset.splits
    normalisation = replace(prepared.normalisation, flips=theirs.normalisation.flips)
    local = EvaluationData(prepared.splits["test"], prepared.splits.get("val"), normalisation)
    sent = EvaluationData(
        prepare_split(raw["test"], theirs),
        prepare_split(raw["val"], theirs) if "val" in raw else None,
        theirs.normalisation,
    )
    return local, sent


def _drawn(
    package: Package, prepared: PreparedDataset, config: EvaluateConfig, local: EvaluationData
) -> tuple[Arm, Arm]:
    """The arms of random images with the package's bytes, and of all images sampled equally often from each stratum:
    by the networks that are teachers where there are any, no more than these, which need not be trained again.
    """
    task, key, counts = package.task, Key(config.seed), plain_counts(package)
    draws = range(config.draws(sum(counts)))
    random = [arms.subset(prepared.train, task, counts, key.child("random", i)) for i in draws]
    taught = package.manifest.label_config.teachers
    seed = package.manifest.provenance.seed if taught else config.seed
    networks = range(min(config.repeats, taught) if taught else config.repeats)
    even = tuple(balanced_set(prepared.train, task, seed, index) for index in networks)
    keys = tuple((seed, FIRST_INDEX + index) for index in networks) if taught else None
    return Arm("random", tuple(random), local), Arm("full_balanced", even, local, first_only=True, keys=keys)


def _arms(package: Package, prepared: PreparedDataset, config: EvaluateConfig, progress: bool) -> list[Arm]:
    """The recipient trains with the package's statistics, the owner of the data with their own."""
    local, sent = _asked(package, prepared)
    distilled = Arm("distilled", (package.data,) * config.repeats, sent)
    full = Arm("full", (prepared.train,) * config.repeats, local)
    random, even = _drawn(package, prepared, config, local)
    drawn = _stored_alike(package, prepared, config)
    matched: list[TensorSplit] = []
    if progress:
        matched = _labelled(package, prepared, local, drawn, only_kept=True)
        known = [Arm(MATCHED, tuple(matched), local)] if matched else []
        unlabelled = [] if matched else [len(data) for data in drawn]
        labels, seed = package.manifest.label_config, package.manifest.provenance.seed
        contest = [distilled, random, *known, full, even]
        if seconds := comparison_seconds(prepared, contest, unlabelled, labels, seed, config):
            say(f"evaluating takes about {duration(seconds)}")
    if drawn and not matched:
        with Progress("labelling random images as the package's are", 0, enabled=progress) as shown:
            matched = _labelled(package, prepared, local, drawn, shown.reach)
    return [distilled, random, *([Arm(MATCHED, tuple(matched), local)] if matched else []), full, even]


def has_matched(package: Package) -> bool:
    """Whether random images with the package's storage and labels are others than plain ones."""
    stored_whole = package.stored_shape == package.preprocessing.image.shape
    return not stored_whole or bool(package.manifest.label_config.teachers)


def _stored_alike(package: Package, prepared: PreparedDataset, config: EvaluateConfig) -> list[TensorSplit]:
    """Draws of random images, each stored as the package's are; none where these are the random arm's."""
    if not has_matched(package):
        return []
    shape, stored, task = package.preprocessing.image.shape, package.stored_shape, package.task
    counts, key, drawn = package.synthetic_per_stratum, Key(config.seed), []
    for index in range(config.draws(sum(counts))):
        data = arms.subset(prepared.train, task, counts, key.child("random", index))
        drawn.append(TensorSplit(decoded(encoded(data.pixels, stored), shape), data.targets))
    return drawn


def _labelled(
    package: Package,
    prepared: PreparedDataset,
    local: EvaluationData,
    drawn: list[TensorSplit],
    progress: Shown | None = None,
    only_kept: bool = False,
) -> list[TensorSplit]:
    """The same, labelled as the package's are; none where only what the cache has is wanted and that is not all.

    Labels by teachers are an option that random images can have too; labels that a method learned are its own work.
    """
    labels, task, seed = package.manifest.label_config, package.task, package.manifest.provenance.seed
    if not drawn or not labels.teachers:
        return drawn
    try:
        labelled = soft_labels(
            prepared.train, drawn, task, local.normalisation, labels, seed, progress, only_kept=only_kept
        )
    except LookupError:
        return []
    return [data.with_soft_labels(restored(task, soft)) for data, soft in zip(drawn, labelled, strict=True)]


def original_bytes(data: TensorSplit) -> int:
    """Bytes of the original training images as a compressed ``.npz`` would store them.

    Large sets are sampled evenly, at most about 64 MB of pixels, and scaled up.
    """
    stride = max(1, data.pixels.nbytes // 2**26)
    sample = np.ascontiguousarray(data.pixels[::stride])
    return round(len(zlib.compress(sample.tobytes(), 6)) * len(data) / len(sample)) + len(data)
