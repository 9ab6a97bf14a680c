"""What is cheap to know of a data set before distilling it.

The feasibility study found that what a small random sample of the data achieves foretells what
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

from medistill.config import DistilConfig, Recipe, build
from medistill.data.preprocess import Part, Prepared
from medistill.distil import loop
from medistill.distil.method import Coreset, Method, make_method
from medistill.distil.problem import make_problem, stored_images
from medistill.errors import DataError
from medistill.evaluation import cache
from medistill.evaluation.arms import subset
from medistill.evaluation.cache import Run, part_digest
from medistill.evaluation.jobs import Job, Parts
from medistill.evaluation.metrics import metrics
from medistill.evaluation.protocol import same_bytes
from medistill.evaluation.workers import run_all
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.training import Statistics, images_seen
from medistill.prediction.indicator import METRICS
from medistill.runtime import device_key
from medistill.types import Json, Probabilities

VERSION = 4
"""Raised whenever the same data would give other features."""

HELD = 1000
"""Training images that networks are asked about, at most, and at most a quarter of them."""

SHORT = Recipe(epochs=5, least_steps=350, steps_per_doubling=20, most_steps=450, width=32)
"""How small networks are trained on few images."""

LONG = Recipe(epochs=5, least_steps=420, steps_per_doubling=20, most_steps=500, width=32)
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
class Wanted:
    """A package that is thought of.

    Args:
        method: what would distil.
        config: how many images, how small they are stored, what labels they get, and the seed.
    """

    method: Method
    config: DistilConfig

    @classmethod
    def of(cls, distil: Json) -> Wanted:
        """From the configuration as a study keeps it.

        Raises:
            ConfigError: the method is not installed here, or has no such settings.
        """
        config = build(DistilConfig, distil)
        return cls(make_method(config.method), config)

    def counts(self, prepared: Prepared) -> Counts:
        """Random images of each class that have the bytes of the package.

        Raises:
            ConfigError: see :func:`random_counts`.
        """
        return random_counts(prepared, self.config.ipc, self.config.ratio, self.config.factor)


def features(
    prepared: Prepared, wanted: Mapping[str, Wanted], advance: Advance = lambda _: None
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
    identities = {name: _identity(prepared, each) for name, each in wanted.items()}
    known = {name: read_cached("features", identity) for name, identity in identities.items()}
    found = {name: {k: float(v) for k, v in sorted(each.items())} for name, each in known.items() if each is not None}
    missing = {name: each for name, each in wanted.items() if name not in found}
    if missing:
        import torch

        for name, each in _Course(prepared, missing, advance).features().items():
            found[name] = dict(sorted(each.items()))
            values = {k: torch.tensor(v, dtype=torch.float64) for k, v in found[name].items()}
            write_cached("features", identities[name], values)
    return {name: found[name] for name in wanted}


def _identity(prepared: Prepared, wanted: Wanted) -> str:
    told: Json = {"version": VERSION, "data": part_digest(prepared.train)}
    told |= {"config": wanted.config.model_dump(mode="json", exclude={"data", "memory_limit_mb"})}
    told |= {"recipes": [r.model_dump(mode="json") for r in (SHORT, LONG)], **device_key()}
    patients = prepared.dataset.train.patients
    if patients is not None:
        told["patients"] = sha256_text(canonical_json(patients.tolist()))
    return sha256_text(canonical_json(told | {"flips": prepared.dataset.description.flips}))


def random_counts(prepared: Prepared, ipc: int | None, ratio: float | None, factor: int) -> Counts:
    """Random images of each class that have the bytes of a package whose images are stored smaller; fewer than asked
    for where a class has not as many images as the package would hold.

    Raises:
        ConfigError: see :func:`medistill.distil.problem.make_problem`.
    """
    stored, counts = stored_images(prepared, ipc, ratio, factor)
    return tuple(same_bytes(counts, math.prod(stored) / math.prod(prepared.train.pixels.shape[2:])))


def work(prepared: Prepared, wanted: Sequence[Wanted]) -> int:
    """Images that go through networks for the features of these packages, at most."""
    sizes = {each.counts(prepared) for each in wanted}
    drawn = sum(_draws(counts) * images_seen(SHORT, sum(counts)) for counts in sizes)
    chosen = sum(images_seen(SHORT, sum(each.counts(prepared))) for each in wanted if _is_looked_at(prepared, each))
    return drawn + chosen + images_seen(LONG, len(prepared.train))


def _draws(counts: Counts) -> int:
    return min(MOST_DRAWS, max(LEAST_DRAWS, DRAWN // images_seen(SHORT, sum(counts))))


@dataclass
class _Course:
    """Trains the networks, or takes them from the cache."""

    prepared: Prepared
    wanted: Mapping[str, Wanted]
    advance: Advance
    parts: Parts = field(default_factory=dict)

    def features(self) -> dict[str, dict[str, float]]:
        prepared, key = self.prepared, Key(0).child("features")
        train, classes = prepared.train, prepared.classes
        held, rest = _held_out(train, classes, key.child("held"), prepared.dataset.train.patients)
        if not len(held):
            raise DataError(
                "no class has two training images, so none can be held out",
                where=prepared.dataset.description.name,
                remedy="a prediction needs more images",
            )
        counts = {name: each.counts(prepared) for name, each in self.wanted.items()}
        jobs: dict[object, Job] = {ALL: self._job(rest, held, LONG, ALL)}
        for size in set(counts.values()):
            for draw in range(_draws(size)):
                part = subset(rest, list(size), key.child("random", draw))
                jobs[size, draw] = self._job(part, held, SHORT, DRAW + draw)
        unseen: dict[str, npt.NDArray[np.bool_]] = {}
        for name, each in self.wanted.items():
            if _is_looked_at(prepared, each):
                chosen = _chosen(prepared, each)
                rows = _unseen(held, chosen)
                if _is_enough(held, rows):
                    unseen[name], jobs[name] = rows, self._job(chosen, held, SHORT, CHOSEN)
        said = self._said(jobs)
        every = _scores(said[ALL], held)
        found: dict[str, dict[str, float]] = {}
        for name, size in counts.items():
            drawn = [_scores(said[size, draw], held) for draw in range(_draws(size))]
            random = {m: float(np.mean([each[m] for each in drawn])) for m in METRICS}
            own = _scores(said[name], held, unseen[name]) if name in unseen else random
            found[name] = _of_kinds(random=random, all=every, chosen=own) | _sizes(train, classes, size)
        return found

    def _job(self, part: Part, asked: Part, recipe: Recipe, index: int) -> Job:
        how, digests = self.prepared.preprocessing, [part_digest(each) for each in (part, asked)]
        self.parts |= dict(zip(digests, (part, asked), strict=True))
        statistics = Statistics(how.mean, how.std, self.prepared.dataset.description.flips)
        return Job(digests[0], digests[1], None, statistics, self.prepared.classes, recipe, 2, 0, index)

    def _said(self, jobs: Mapping[object, Job]) -> dict[object, Probabilities]:
        """What each network says of what it is asked, (n, classes)."""
        known = {job.identity: cache.read(job.identity) for job in jobs.values()}
        found = {identity: run for identity, run in known.items() if run is not None}

        def keep(job: Job, run: Run) -> None:
            cache.write(job.identity, run)
            found[job.identity] = run

        todo = {job.identity: job for job in jobs.values() if job.identity not in found}
        run_all(list(todo.values()), self.parts, self.advance, keep)
        return {name: found[job.identity].probabilities for name, job in jobs.items()}


def _is_looked_at(prepared: Prepared, wanted: Wanted) -> bool:
    """Whether a package is a coreset, whose images take a second to choose, of so few that which they are matters."""
    config, few = wanted.config, sum(wanted.counts(prepared)) <= FEW * prepared.classes
    plain = config.factor == 1 and not config.labels.teachers
    return isinstance(wanted.method, Coreset) and plain and few and len(prepared.train) <= MOST_IMAGES


def _chosen(prepared: Prepared, wanted: Wanted) -> Part:
    """The images of a coreset, as they will be in its package."""
    problem = make_problem(prepared, wanted.config.ipc, wanted.config.ratio)
    state = loop.start(wanted.method, problem, Key(wanted.config.seed).child("distil"))
    return Part(problem.quantise(state.images).numpy(), problem.labels.numpy())


def _unseen(held: Part, chosen: Part) -> npt.NDArray[np.bool_]:
    """Which of the images to ask about are not among those that a network was trained on."""
    own = {image.tobytes() for image in chosen.pixels}
    return np.array([image.tobytes() not in own for image in held.pixels])


def _is_enough(held: Part, rows: npt.NDArray[np.bool_]) -> bool:
    """Whether at least half of each class's images are left to ask about."""
    return all(rows[held.labels == label].mean() >= 0.5 for label in np.unique(held.labels))


def _scores(said: Probabilities, held: Part, rows: npt.NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
    found = metrics(said[rows], held.labels[rows])
    # Where images of one class only could be held out no area is defined; that says nothing, as chance does.
    return {metric: float(np.nan_to_num(found[metric], nan=0.5)) for metric in METRICS}


def _of_kinds(**kinds: dict[str, float]) -> dict[str, float]:
    return {f"{kind}.{metric}": value for kind, each in kinds.items() for metric, value in each.items()}


def _sizes(train: Part, classes: int, counts: Counts) -> dict[str, float]:
    sizes = np.bincount(train.labels, minlength=classes)
    return {
        "classes": float(classes),
        "images": float(sum(counts)),
        "training_images": float(len(train)),
        "share": sum(counts) / len(train),
        "majority": float(sizes.max() / sizes.sum()),
        "pixels": float(math.prod(train.pixels.shape[2:])),
    }


def _held_out(train: Part, classes: int, key: Key, patients: npt.NDArray[np.str_] | None = None) -> tuple[Part, Part]:
    """Images to ask about, as many of each class, and the others. A class of one is not asked about. Where patients
    are known whole ones are held out, so that nobody is asked about a patient known already.
    """
    sizes = np.bincount(train.labels, minlength=classes)
    each = max(1, min(HELD, len(train) // 4) // classes)
    rows = np.zeros(len(train), dtype=bool)
    for label in range(classes if patients is None else 0):
        members = np.flatnonzero(train.labels == label)
        rows[key.child(label).numpy().permutation(members)[: min(each, sizes[label] // 2)]] = True
    if patients is not None:
        names, of = np.unique(patients, return_inverse=True)
        images = np.zeros((len(names), classes), dtype=np.int64)
        np.add.at(images, (of, train.labels), 1)
        held, taken = np.zeros(len(names), dtype=bool), np.zeros(classes, dtype=np.int64)
        for patient in key.child("patients").numpy().permutation(len(names)):
            own = images[patient]
            if ((taken < each) & (own > 0)).any() and (taken + own <= sizes // 2)[own > 0].all():
                held[patient], taken = True, taken + own
        rows = held[of]
    return Part(train.pixels[rows], train.labels[rows]), Part(train.pixels[~rows], train.labels[~rows])
