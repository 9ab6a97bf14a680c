"""What is cheap to know of a data set before distilling it.

The feasibility study found that what a small random sample of the data achieves predicts what
distilled images will. Here small networks are trained for a short time on such samples, on all images
and on the few that a coreset would choose, and asked about training images that were held out.
Validation and test images are never seen.

Source: "Dataset Distillation in Medical Imaging: A Feasibility Study", arXiv 2407.14429.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Probabilities
from medistill.config import DistilConfig, Recipe, build
from medistill.data.preprocess import PreparedDataset, TensorSplit
from medistill.data.sampling import draw_by_stratum
from medistill.distil import loop
from medistill.distil.method import Coreset, Method, make_method
from medistill.distil.problem import make_problem, stored_images
from medistill.errors import DataError
from medistill.evaluation.arms import run_cached, subset
from medistill.evaluation.duration import Pace, effort
from medistill.evaluation.jobs import VERSION as NETWORKS_VERSION
from medistill.evaluation.jobs import Job, Splits
from medistill.evaluation.protocol import same_bytes
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.training import images_seen
from medistill.prediction.indicator import METRICS
from medistill.runtime import device_key
from medistill.tasks.task import Task

VERSION = 4
"""Raised whenever the same data would give other features."""

HELD = 1000
"""Training images that networks are asked about, at most, and at most a quarter of them."""

SHORT = Recipe(epochs=5, min_steps=350, steps_per_doubling=20, max_steps=450, width=32)
"""How small networks are trained on few images."""

LONG = Recipe(epochs=5, min_steps=420, steps_per_doubling=20, max_steps=500, width=32)
"""How one is trained on all images."""

LEAST_DRAWS, MOST_DRAWS = 3, 6
"""Random samples of the size asked for. What a single image per class gives differs most from draw to draw."""

FEW, MOST_IMAGES = 3, 8_000
"""Images per class of a coreset, and training images to choose them from, up to which its very images are looked at.
Which they are matters less the more there are, and choosing from more takes long.
"""

DRAWN = 20_000
"""Images that go through networks trained on random samples, within those bounds."""

ALL, DRAW, CHOSEN = 0, 1, 1000
"""Numbers of the networks, from which their randomness follows: of all images, of the first draw, of coresets."""

Advance = Callable[[float], None]

Counts = tuple[int, ...]


@dataclass(frozen=True)
class PackageSpec:
    """A package that is thought of.

    Args:
        method: what would distil.
        config: how many images, how small they are stored, what labels they get, and the seed.
    """

    method: Method
    config: DistilConfig

    @classmethod
    def of(cls, distil: Json) -> PackageSpec:
        """From the configuration as a study keeps it.

        Raises:
            ConfigError: the method is not installed here, or has no such settings.
        """
        config = build(DistilConfig, distil)
        return cls(make_method(config.method), config)

    def counts(self, prepared: PreparedDataset) -> Counts:
        """Random images of each class that have the bytes of the package.

        Raises:
            ConfigError: see :func:`random_counts`.
        """
        return random_counts(prepared, self.config.ipc, self.config.ratio, self.config.factor)


def features(
    prepared: PreparedDataset, wanted: Mapping[str, PackageSpec], advance: Advance = lambda _: None
) -> dict[str, dict[str, float]]:
    """Features of a data set for packages; found in the user's cache when they were computed before.

    Args:
        prepared: the data; only training images are used.
        wanted: packages by name.
        advance: told each image that went through a network.

    Returns:
        By name: ``random.<metric>``, ``all.<metric>`` and ``chosen.<metric>`` of networks trained on random images
        that have the package's bytes, on all, and on the very images of a coreset where these are few, else again on
        random ones; for balanced accuracy and AUROC. ``classes``, ``images`` (random ones), ``training_images``,
        ``share``, ``majority`` (share of the largest class) and ``pixels``.

    Raises:
        DataError: no class has two training images.
        ConfigError: more images than there are, or images stored too small.
    """
    by_name = _known(prepared, wanted)
    missing = {name: package for name, package in wanted.items() if name not in by_name}
    if missing:
        import torch

        for name, computed in _Networks(prepared, missing, advance).features().items():
            by_name[name] = dict(sorted(computed.items()))
            values = {k: torch.tensor(v, dtype=torch.float64) for k, v in by_name[name].items()}
            write_cached("features", _identity(prepared, wanted[name]), values)
    return {name: by_name[name] for name in wanted}


def features_seconds(prepared: PreparedDataset, wanted: Mapping[str, PackageSpec]) -> float:
    """How long :func:`features` takes on this machine, about: measured on a few steps of training, then counted."""
    known = _known(prepared, wanted)
    missing = [package for name, package in wanted.items() if name not in known]
    if not missing:
        return 0.0
    train = prepared.train
    pace = Pace(train, prepared.task, prepared.normalisation, LONG)
    efforts = [effort(recipe, images) for recipe, images in _trained(prepared, missing)]
    return pace.spread(efforts, min(HELD, len(train) // 4))


def _known(prepared: PreparedDataset, wanted: Mapping[str, PackageSpec]) -> dict[str, dict[str, float]]:
    """What the cache has."""
    cached = {name: read_cached("features", _identity(prepared, package)) for name, package in wanted.items()}
    return {
        name: {k: float(v) for k, v in sorted(stored.items())}
        for name, stored in cached.items()
        if stored is not None
    }


def _identity(prepared: PreparedDataset, wanted: PackageSpec) -> str:
    identity: Json = {"version": VERSION, "networks": NETWORKS_VERSION, "data": prepared.train.digest}
    identity |= {"config": wanted.config.model_dump(mode="json", exclude={"data", "memory_limit_mb"})}
    identity |= {"recipes": [r.model_dump(mode="json") for r in (SHORT, LONG)], **device_key()}
    patients = prepared.dataset.train.patients
    if patients is not None:
        identity["patients"] = sha256_text(canonical_json(patients.tolist()))
    return sha256_text(canonical_json(identity | {"flips": prepared.normalisation.flips, "task": prepared.task.kind}))


def random_counts(prepared: PreparedDataset, ipc: int | None, ratio: float | None, factor: int) -> Counts:
    """Random images of each class that have the bytes of a package whose images are stored smaller; fewer than asked
    for where a class has not as many images as the package would hold.

    Raises:
        ConfigError: see :func:`medistill.distil.problem.make_problem`.
    """
    stored, counts = stored_images(prepared, ipc, ratio, factor)
    return tuple(same_bytes(counts, math.prod(stored) / math.prod(prepared.train.shape)))


def work(prepared: PreparedDataset, wanted: Sequence[PackageSpec]) -> int:
    """Images that go through networks for the features of these packages, at most."""
    return sum(images_seen(recipe, images) for recipe, images in _trained(prepared, wanted))


def _trained(prepared: PreparedDataset, wanted: Sequence[PackageSpec]) -> list[tuple[Recipe, int]]:
    """The recipe of each network and the images that it is trained on."""
    sizes = {package.counts(prepared) for package in wanted}
    drawn = [(SHORT, sum(counts)) for counts in sizes for _ in range(_draws(counts))]
    chosen = [(SHORT, sum(package.counts(prepared))) for package in wanted if _is_looked_at(prepared, package)]
    return [*drawn, *chosen, (LONG, len(prepared.train))]


def _draws(counts: Counts) -> int:
    return min(MOST_DRAWS, max(LEAST_DRAWS, DRAWN // images_seen(SHORT, sum(counts))))


@dataclass
class _Networks:
    """Trains the networks, or takes them from the cache."""

    prepared: PreparedDataset
    wanted: Mapping[str, PackageSpec]
    advance: Advance
    splits: Splits = field(default_factory=dict)

    def features(self) -> dict[str, dict[str, float]]:
        prepared, key = self.prepared, Key(0).child("features")
        train, task = prepared.train, prepared.task
        held, rest = _held_out(train, task, key.child("held"), prepared.dataset.train.patients)
        if not len(held):
            raise DataError(
                "no class has two training images, so none can be held out",
                where=prepared.dataset.description.name,
                remedy="a prediction needs more images",
            )
        counts = {name: package.counts(prepared) for name, package in self.wanted.items()}
        jobs: dict[object, Job] = {ALL: self._job(rest, held, LONG, ALL)}
        for size in set(counts.values()):
            for draw in range(_draws(size)):
                part = subset(rest, task, list(size), key.child("random", draw))
                jobs[size, draw] = self._job(part, held, SHORT, DRAW + draw)
        unseen: dict[str, npt.NDArray[np.bool_]] = {}
        for name, package in self.wanted.items():
            if _is_looked_at(prepared, package):
                chosen = _chosen(prepared, package)
                rows = _unseen(held, chosen)
                if _is_enough(held, task, rows):
                    unseen[name], jobs[name] = rows, self._job(chosen, held, SHORT, CHOSEN)
        answers = self._answers(jobs)
        every = _scores(answers[ALL], held, task)
        by_name: dict[str, dict[str, float]] = {}
        for name, size in counts.items():
            drawn = [_scores(answers[size, draw], held, task) for draw in range(_draws(size))]
            random = {m: float(np.mean([scores[m] for scores in drawn])) for m in METRICS}
            of_chosen = _scores(answers[name], held, task, unseen[name]) if name in unseen else random
            by_name[name] = _of_kinds(random=random, all=every, chosen=of_chosen) | _sizes(train, task, size)
        return by_name

    def _job(self, data: TensorSplit, asked: TensorSplit, recipe: Recipe, index: int) -> Job:
        digests = [part.digest for part in (data, asked)]
        self.splits |= dict(zip(digests, (data, asked), strict=True))
        task, normalisation = self.prepared.task, self.prepared.normalisation
        return Job(digests[0], digests[1], None, normalisation, task.kind, task.outputs, recipe, 2, 0, index)

    def _answers(self, jobs: Mapping[object, Job]) -> dict[object, Probabilities]:
        """Each network's probabilities of what it is asked, (n, outputs)."""
        before = 0

        def news(total: int, done: int, count: int, finished: int) -> None:
            nonlocal before
            self.advance(done - before)
            before = done

        runs = run_cached(list(jobs.values()), self.splits, news)
        return {name: runs[job].probabilities for name, job in jobs.items()}


def _is_looked_at(prepared: PreparedDataset, wanted: PackageSpec) -> bool:
    """Whether a package is a coreset, whose images take a second to choose, of so few that which they are matters."""
    config, few = wanted.config, sum(wanted.counts(prepared)) <= FEW * prepared.task.outputs
    plain = config.factor == 1 and not config.labels.teachers
    return isinstance(wanted.method, Coreset) and plain and few and len(prepared.train) <= MOST_IMAGES


def _chosen(prepared: PreparedDataset, wanted: PackageSpec) -> TensorSplit:
    """The images of a coreset, as they will be in its package."""
    problem = make_problem(prepared, wanted.config.ipc, wanted.config.ratio)
    state = loop.start(wanted.method, problem, Key(wanted.config.seed).child("distil"))
    return TensorSplit(problem.quantise(state.images).numpy(), state.targets.numpy())


def _unseen(held: TensorSplit, chosen: TensorSplit) -> npt.NDArray[np.bool_]:
    """Which of the images to ask about are not among those that a network was trained on."""
    trained_on = {image.tobytes() for image in chosen.pixels}
    return np.array([image.tobytes() not in trained_on for image in held.pixels])


def _is_enough(held: TensorSplit, task: Task, rows: npt.NDArray[np.bool_]) -> bool:
    """Whether at least half of each stratum's images are left to ask about."""
    return all(rows[members].mean() >= 0.5 for members in task.membership(held.targets).T if members.any())


def _scores(
    answers: Probabilities, held: TensorSplit, task: Task, rows: npt.NDArray[np.bool_] | slice = slice(None)
) -> dict[str, float]:
    scores = task.scores(answers[rows], held.targets[rows])
    # Where images of one class only could be held out no area is defined; that says nothing, as chance does.
    return {metric: float(np.nan_to_num(scores[metric], nan=0.5)) for metric in METRICS}


def _of_kinds(**kinds: dict[str, float]) -> dict[str, float]:
    return {f"{kind}.{metric}": value for kind, scores in kinds.items() for metric, value in scores.items()}


def _sizes(train: TensorSplit, task: Task, counts: Counts) -> dict[str, float]:
    sizes = task.counts(train.targets)
    return {
        "classes": float(task.outputs),
        "images": float(sum(counts)),
        "training_images": float(len(train)),
        "share": sum(counts) / len(train),
        "majority": float(max(sizes) / sum(sizes)),
        "pixels": float(math.prod(train.shape)),
    }


def _held_out(
    train: TensorSplit, task: Task, key: Key, patients: npt.NDArray[np.str_] | None = None
) -> tuple[TensorSplit, TensorSplit]:
    """Images to ask about, as many of each stratum, and the others. A stratum of one is not asked about. Where
    patients are known whole ones are held out, so that nobody is asked about a patient known already.
    """
    membership = task.membership(train.targets)
    sizes = membership.sum(axis=0)
    per_stratum = max(1, min(HELD, len(train) // 4) // len(sizes))
    rows = np.zeros(len(train), dtype=bool)
    if patients is None:
        wanted = [min(per_stratum, int(size) // 2) for size in sizes]
        for drawn in draw_by_stratum(membership, wanted, lambda s: key.child(s)):
            rows[drawn] = True
    else:
        names, of = np.unique(patients, return_inverse=True)
        images = np.zeros((len(names), len(sizes)), dtype=np.int64)
        np.add.at(images, of, membership.astype(np.int64))
        held, taken = np.zeros(len(names), dtype=bool), np.zeros(len(sizes), dtype=np.int64)
        for patient in key.child("patients").numpy().permutation(len(names)):
            counts = images[patient]
            if ((taken < per_stratum) & (counts > 0)).any() and (taken + counts <= sizes // 2)[counts > 0].all():
                held[patient], taken = True, taken + counts
        rows = held[of]
    return TensorSplit(train.pixels[rows], train.targets[rows]), TensorSplit(
        train.pixels[~rows], train.targets[~rows]
    )
