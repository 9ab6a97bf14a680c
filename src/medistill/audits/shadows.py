"""Shadow distillations: the package made again from random halves of the people, and what each half gives away.

Of every image it is then known which shadows it took part in, and people who did and who did not are alike, which
training and test images of a data set need not be. Shadows are made by the package's own method, settings and labels,
with fewer steps where these would take long: an attack on them is one on a shorter distillation of half the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels, Probabilities
from medistill.audits.attacks import Array, Took
from medistill.audits.audit import Population
from medistill.audits.checks.resemblance import nearest_images
from medistill.audits.distillations import StoredImages, distilled_from, distilling_seconds
from medistill.audits.features import FILTERS, embedded
from medistill.config import Recipe
from medistill.data.arrays import blocks, take
from medistill.data.image import decoded, encoded
from medistill.data.preprocess import TensorSplit
from medistill.evaluation.arms import run_cached, subset
from medistill.evaluation.duration import Pace
from medistill.evaluation.jobs import Job, Splits
from medistill.evaluation.protocol import has_matched
from medistill.evaluation.teachers import balanced_set, restored
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.package.package import Package
from medistill.progress import Progress

FIRST_INDEX = 2_000_000
"""Networks of audits are numbered from here on, so that none starts like one that is compared or teaches."""

NETWORKS = 4
"""Random ones, in whose features an image is sought in a package."""


@dataclass(frozen=True)
class Shadows:
    """What shadows say of every image.

    Args:
        took_part: (images, shadows).
        person: (images,) number of the person whose it is; of the image itself where people are not known.
        probability: of each arm, (images, shadows): what its network gives an image's true labels.
        nearest: (images, shadows) correlation with the most similar image of the shadow.
        features: (images, shadows) how far the shadow's mean features lie towards the image's own.
    """

    took_part: Took
    person: npt.NDArray[np.int64]
    probability: dict[str, Array]
    nearest: Array
    features: Array

    @property
    def people(self) -> int:
        """How many there are."""
        return int(self.person.max()) + 1

    @cached_property
    def people_took_part(self) -> Took:
        """(people, shadows)."""
        _, first = np.unique(self.person, return_index=True)
        return self.took_part[first]


def numbered_people(population: Population) -> npt.NDArray[np.int64]:
    """A number for each image's person, (images,); each image by itself where people are not known."""
    if population.patients is None:
        return np.arange(len(population))
    return np.unique(population.patients, return_inverse=True)[1].astype(np.int64)


def halves(people: int, shadows: int, key: Key) -> Took:
    """Who takes part in which shadow, (people, shadows): a random half in each even one, the rest in the next."""
    took = np.zeros((people, shadows), dtype=bool)
    for pair in range(shadows // 2):
        order = key.child("half", pair).numpy().permutation(people)
        took[order[: (people + 1) // 2], 2 * pair] = True
        took[:, 2 * pair + 1] = ~took[:, 2 * pair]
    return took


def halves_of(everyone: TensorSplit, took_part: Took) -> list[TensorSplit]:
    """The images that take part in each shadow, from which do, (images, shadows)."""
    rows = [np.flatnonzero(column) for column in took_part.T]
    return [TensorSplit(take(everyone.pixels, own), everyone.targets[own]) for own in rows]


def make_shadows(
    package: Package,
    members: Population,
    number: int,
    iterations: int,
    training_steps: int,
    key: Key,
    progress: bool,
) -> Shadows:
    """Distil every shadow, train its networks, and ask all of them about every image.

    Distillations and networks are kept in the user's cache, so what was stopped goes on.

    Args:
        package: whose method, settings and labels are followed.
        members: the images that it was made from.
        number: of shadows, in complementary pairs.
        iterations: of each distillation, at most.
        training_steps: of every network that is trained.
        key: of all randomness.
        progress: show it.
    """
    person, everyone = numbered_people(members), members.split
    took_part = halves(int(person.max()) + 1, number, key)[person]
    parts = halves_of(everyone, took_part)
    stored = []
    with Progress("distilling shadows", number, enabled=progress) as shown:
        for index, part in enumerate(parts):
            patients = None if members.patients is None else members.patients[took_part[:, index]]
            stored.append(distilled_from(package, part, patients, iterations, key.child("shadow", index)))
            shown.advance(1)
    recipe = shadow_recipe(package, training_steps)
    networks = Networks(package, recipe, key.integer() % 2**31, progress)
    probability = _likelihoods(networks, everyone, parts, stored, key)
    shape = package.preprocessing.image.shape
    features = feature_products(package, everyone, [(decoded(s.pixels, shape), s.strata) for s in stored], key)
    return Shadows(took_part, person, probability, _nearest(package, everyone, stored), features)


def _likelihoods(
    networks: Networks,
    everyone: TensorSplit,
    parts: Sequence[TensorSplit],
    stored: Sequence[StoredImages],
    key: Key,
) -> dict[str, Array]:
    """What networks trained on each arm's images give every image's true labels: on the shadow, on as many random
    images of its half, and on these with its storage and labels.
    """
    package = networks.package
    task, shape, labels = package.task, package.preprocessing.image.shape, package.manifest.label_config
    own = [TensorSplit(decoded(images.pixels, shape), images.targets, images.learned) for images in stored]
    random = [
        subset(
            part, task, np.bincount(images.strata, minlength=len(task.strata)).tolist(), key.child("random", index)
        )
        for index, (part, images) in enumerate(zip(parts, stored, strict=True))
    ]
    matched = [TensorSplit(decoded(encoded(s.pixels, package.stored_shape), shape), s.targets) for s in random]
    if labels.teachers:
        both = [_joined(*pair) for pair in zip(own, matched, strict=True)]
        for index, answer in enumerate(networks.teachers_answers(parts, both)):
            soft = restored(task, task.sharpened(answer, labels.temperature))
            own[index] = own[index].with_soft_labels(soft[: len(own[index])])
            matched[index] = matched[index].with_soft_labels(soft[len(own[index]) :])
    sets = {"distilled": own, "random": random} | ({"random_matched": matched} if has_matched(package) else {})
    right = networks.likelihoods("training networks", [data for arm in sets.values() for data in arm], everyone)
    return dict(zip(sets, np.split(right, len(sets), axis=1), strict=True))


def _joined(first: TensorSplit, second: TensorSplit) -> TensorSplit:
    return TensorSplit(np.concatenate([first.pixels, second.pixels]), np.concatenate([first.targets, second.targets]))


@dataclass(frozen=True)
class Networks:
    """Networks that an audit trains, kept in the cache.

    Args:
        package: whose task and normalisation they have.
        recipe: how they are trained.
        seed: of them.
        progress: show it.
    """

    package: Package
    recipe: Recipe
    seed: int
    progress: bool

    def answers(self, label: str, sets: Sequence[TensorSplit], asked: Sequence[TensorSplit]) -> list[Probabilities]:
        """Train a network on each set and ask it for the images beside it."""
        task, normalisation = self.package.task, self.package.preprocessing.normalisation
        splits: Splits = {data.digest: data for data in (*sets, *asked)}
        jobs = [
            Job(
                data.digest, images.digest, None, normalisation, task.kind, task.outputs, self.recipe, 2, self.seed,
                FIRST_INDEX + number,
            )
            for number, (data, images) in enumerate(zip(sets, asked, strict=True))
        ]  # fmt: skip
        with Progress(label, 0, enabled=self.progress) as shown:

            def news(total: int, done: int, number: int, known: int) -> None:
                shown.reach(total, done, f"({known} of {number} networks)")

            runs = run_cached(jobs, splits, news)
        return [runs[job].probabilities for job in jobs]

    def teachers_answers(self, parts: Sequence[TensorSplit], asked: Sequence[TensorSplit]) -> list[Probabilities]:
        """What a teacher of each part says of the images beside it; on balanced classes, if the package's were."""
        task, balance = self.package.task, self.package.manifest.label_config.balance
        taught = [balanced_set(part, task, self.seed, i) if balance else part for i, part in enumerate(parts)]
        return self.answers("training teachers", taught, asked)

    def likelihoods(self, label: str, sets: Sequence[TensorSplit], everyone: TensorSplit) -> Array:
        """What a network trained on each set gives the true labels of all images, (images, sets)."""
        said = self.answers(label, sets, [everyone] * len(sets))
        return np.stack([self.package.task.likelihood(p, everyone.targets) for p in said], axis=1)


def shadow_recipe(package: Package, steps: int) -> Recipe:
    """How networks of a shadow are trained: as the package's teachers are, in fewer steps."""
    recipe = package.manifest.label_config.recipe
    fewer = min(steps, recipe.max_steps)
    return recipe.model_copy(update={"min_steps": fewer, "max_steps": fewer, "steps_per_doubling": 0})


def _nearest(package: Package, everyone: TensorSplit, stored: Sequence[StoredImages]) -> Array:
    """Correlation of each image with the most similar one of each shadow, at the stored size, (images, shadows)."""
    small = np.concatenate([encoded(block, package.stored_shape) for _, block in blocks(everyone.pixels)])
    return np.stack([nearest_images(small, [s.pixels]).correlation for s in stored], axis=1).astype(np.float64)


def feature_products(
    package: Package, everyone: TensorSplit, sets: Sequence[tuple[Pixels, npt.NDArray[np.int64]]], key: Key
) -> Array:
    """Of each image and set: product of the image's features with the mean ones of the set's images of its strata,
    summed over random networks, (images, sets).

    To a mean over n real images each of them adds its own features over n. So this product rises by their squared
    length over n where the image took part: it is what a mean gives away of it.

    Args:
        package: whose task and normalisation are used.
        everyone: images that are sought.
        sets: images as networks see them, and their strata.
        key: of the networks.
    """
    task, normalisation = package.task, package.preprocessing.normalisation
    belongs = task.membership(everyone.targets).astype(np.float32)
    belongs /= belongs.sum(axis=1, keepdims=True).clip(1)
    result = np.zeros((len(everyone), len(sets)))
    for number in range(NETWORKS):
        network = ConvNet(everyone.channels, everyone.shape, task.outputs, FILTERS)
        parameters = network.parameters(key.child("features", number))
        own = embedded(network, parameters, normalisation, everyone.pixels)
        own -= own.mean(axis=0)
        own /= np.linalg.norm(own, axis=1, keepdims=True).clip(1e-6)
        for index, (pixels, strata) in enumerate(sets):
            features = embedded(network, parameters, normalisation, pixels)
            means = np.zeros((len(task.strata), features.shape[1]), dtype=np.float32)
            for stratum in np.unique(strata):
                means[stratum] = features[strata == stratum].mean(axis=0)
            result[:, index] += ((own @ means.T) * belongs).sum(axis=1)
    return result


def shadow_seconds(
    package: Package, members: Population, number: int, iterations: int, training_steps: int, key: Key
) -> float:
    """How long :func:`make_shadows` takes, about, where nothing is kept; arguments as there."""
    everyone, images = members.split, len(package)
    (half,) = halves_of(everyone, halves(len(everyone), 2, key)[:, :1])
    recipe = shadow_recipe(package, training_steps)
    pace = Pace(half, package.task, package.preprocessing.normalisation, recipe)
    seconds = number * distilling_seconds(package, half, iterations, key)
    if package.manifest.label_config.teachers:
        seconds += pace.seconds([len(half)] * number, 2 * images)
    return seconds + pace.seconds([images] * number * (3 if has_matched(package) else 2), len(everyone))
