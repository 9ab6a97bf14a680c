"""One network to train and to ask, as a job that any process can do to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.evaluation.cache import Run
from medistill.evaluation.metrics import metrics
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.training import Statistics, images_seen, predict, steps_for, train
from medistill.nets.zoo import make_network
from medistill.types import Json

VERSION = 3
"""Raised whenever the same recipe would train other networks."""

CURVE_IMAGES = 256
"""Validation images a learning curve is measured on, at most."""

Parts = dict[str, Part]
"""Images and labels by the digest of their content."""


@dataclass(frozen=True)
class Job:
    """Everything that determines a trained network's predictions.

    Args:
        train, test, val: digests of the parts; ``val`` may be missing.
        statistics: how the pixels of all three are normalised.
        classes: outputs of the network.
        recipe: how it is trained.
        curve_points: how often it is looked at while training, on validation images.
        seed, index: randomness; networks of one index start alike in every arm.
        network: which of ``medistill.config.Net`` is trained.
        keep: keep the trained network itself in the cache, so that it can answer other images without training.
    """

    train: str
    test: str
    val: str | None
    statistics: Statistics
    classes: int
    recipe: Recipe
    curve_points: int
    seed: int
    index: int
    network: str = "convnet"
    keep: bool = False

    def as_json(self) -> Json:
        known = {**asdict(self), "statistics": asdict(self.statistics), "recipe": self.recipe.model_dump(mode="json")}
        return known if self.network != "convnet" else {k: v for k, v in known.items() if k != "network"}

    @classmethod
    def from_json(cls, value: Json) -> Job:
        known = value["statistics"]
        statistics = Statistics(tuple(known["mean"]), tuple(known["std"]), known["flips"])
        return cls(**{**value, "statistics": statistics, "recipe": Recipe.model_validate(value["recipe"])})

    @property
    def identity(self) -> str:
        """What the cache knows its result by."""
        known = {k: v for k, v in self.as_json().items() if k != "keep"}
        return sha256_text(canonical_json({"version": VERSION, **known}))

    @property
    def network_identity(self) -> str:
        """What the cache knows the trained network by: all that determines it, but not what it is asked."""
        known = {k: v for k, v in self.as_json().items() if k not in ("keep", "test", "val", "curve_points")}
        return sha256_text(canonical_json({"version": VERSION, **known}))

    def steps(self, parts: Parts) -> int:
        """Gradient steps of the training."""
        return steps_for(self.recipe, len(parts[self.train]))

    def work(self, parts: Parts) -> int:
        """Images that go through the network in training."""
        return images_seen(self.recipe, len(parts[self.train]))


def do(job: Job, parts: Parts, advance: Callable[[int], None]) -> Run:
    """Train the network and predict the test images.

    Args:
        job: what to do.
        parts: where the images are.
        advance: told how many images went through the network since it was last called.
    """
    part, val = parts[job.train], None if job.val is None else parts[job.val]
    channels, height, width = part.pixels.shape[1:]
    network = make_network(job.network, channels, height, width, job.classes, job.recipe.width)
    steps, batch = steps_for(job.recipe, len(part)), min(job.recipe.batch, len(part))
    points = set(np.unique(np.geomspace(min(10, steps), steps, job.curve_points).astype(int)).tolist())
    stride = 1 if val is None else -(-len(val) // CURVE_IMAGES)
    curve: list[tuple[float, float, float]] = []

    def after_step(done: int, parameters: Parameters) -> None:
        advance(batch)
        if val is not None and done in points:
            seen = predict(network, parameters, val.pixels[::stride], replace(job.statistics, flips="none"))
            score = metrics(seen, val.labels[::stride])["balanced_accuracy"]
            curve.append((done, done * batch, score))

    key = Key(job.seed).child("network", job.index)
    parameters = read_cached("networks", job.network_identity) if job.keep else None
    if parameters is None:
        parameters = train(network, part, job.statistics, job.recipe, key, after_step)
        if job.keep:
            write_cached("networks", job.network_identity, parameters)
    # The test images are seen here, once, by the finished network.
    probabilities = predict(network, parameters, parts[job.test].pixels, job.statistics)
    return Run(probabilities, np.array(curve, dtype=np.float64).reshape(-1, 3))
