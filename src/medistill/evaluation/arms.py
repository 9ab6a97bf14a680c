"""The arms of a comparison: what each trains on. One recipe, one network, the same keys for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from medistill.config import EvaluateConfig
from medistill.data.preprocess import Part
from medistill.evaluation import cache
from medistill.evaluation.metrics import metrics
from medistill.files import canonical_json, sha256_text
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.nets.training import Statistics, predict, steps_for, train

VERSION = 1
"""Raised whenever the same recipe would train other networks."""

CURVE_IMAGES = 512
"""Validation images a learning curve is measured on, at most."""


@dataclass(frozen=True)
class Exam:
    """What trained networks are asked: images prepared and normalised as the arm's training images were."""

    test: Part
    val: Part | None
    statistics: Statistics


@dataclass(frozen=True)
class Arm:
    """One arm: a training set for every run, and the exam.

    Args:
        name: "distilled", "random", "full" or "full_balanced".
        sets: the training set of each run.
        exam: test and validation images.
    """

    name: str
    sets: tuple[Part, ...]
    exam: Exam


def subset(part: Part, counts: list[int], key: Key) -> Part:
    """Random images of each class without replacement, at most as many as there are."""
    rows = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(part.labels == label)
        rows.append(key.child("class", label).numpy().permutation(members)[:count])
    chosen = np.sort(np.concatenate(rows))
    return Part(part.pixels[chosen], part.labels[chosen])


def balanced(part: Part, key: Key) -> Part:
    """As many images of each class as the smallest class has; absent classes stay absent."""
    sizes = np.bincount(part.labels)
    return subset(part, [int(sizes[sizes > 0].min())] * len(sizes), key)


def work(arm: Arm, config: EvaluateConfig) -> float:
    """Images that training this arm runs through the network."""
    return float(sum(steps_for(config.recipe, len(s)) * min(config.recipe.batch, len(s)) for s in arm.sets))


def train_arm(
    arm: Arm, classes: int, config: EvaluateConfig, advance: Callable[[float], None]
) -> Iterator[cache.Run]:
    """Train the arm's networks, or take from the cache what was trained before.

    Args:
        arm: the arm.
        classes: outputs of the network.
        config: recipe and seed.
        advance: told how many images went through the network since it was last called.
    """
    exam = (cache.part_digest(arm.exam.test), cache.part_digest(arm.exam.val), repr(arm.exam.statistics))
    for index, part in enumerate(arm.sets):
        identity = sha256_text(
            canonical_json(
                {
                    "version": VERSION,
                    "recipe": config.recipe.model_dump(),
                    "curve_points": config.curve_points,
                    "seed": config.seed,
                    "index": index,
                    "classes": classes,
                    "train": cache.part_digest(part),
                    "exam": exam,
                }
            )
        )
        seen = steps_for(config.recipe, len(part)) * min(config.recipe.batch, len(part))
        run = cache.read(identity)
        if run is None:
            run = _train_one(part, arm.exam, classes, config, Key(config.seed).child("network", index), advance)
            cache.write(identity, run)
        else:
            advance(seen)
        yield run


def _train_one(
    part: Part, exam: Exam, classes: int, config: EvaluateConfig, key: Key, advance: Callable[[float], None]
) -> cache.Run:
    channels, height, width = part.pixels.shape[1:]
    network = ConvNet(channels, height, width, classes, config.recipe.width)
    steps, batch = steps_for(config.recipe, len(part)), min(config.recipe.batch, len(part))
    points = set(np.unique(np.geomspace(min(10, steps), steps, config.curve_points).astype(int)).tolist())
    stride = 1 if exam.val is None else -(-len(exam.val) // CURVE_IMAGES)
    curve: list[tuple[float, float, float]] = []

    def after_step(done: int, parameters: Parameters) -> None:
        advance(batch)
        if exam.val is not None and done in points:
            seen = predict(network, parameters, exam.val.pixels[::stride], exam.statistics)
            score = metrics(seen, exam.val.labels[::stride])["balanced_accuracy"]
            curve.append((done, done * batch, score))

    parameters = train(network, part, exam.statistics, config.recipe, key, after_step)
    # The test images are seen here, once, by the finished network.
    probabilities = predict(network, parameters, exam.test.pixels, exam.statistics)
    return cache.Run(probabilities, np.array(curve, dtype=np.float64).reshape(-1, 3))
