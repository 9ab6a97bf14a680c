"""One network to train and to ask, as a job that any process can do to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.evaluation.cache import Run
from medistill.evaluation.metrics import metrics
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets import zoo
from medistill.nets.convnet import Parameters
from medistill.nets.training import AfterStep, Statistics, Training, images_seen, predict, steps_for
from medistill.nets.zoo import Network, make_network
from medistill.runtime import device_key
from medistill.types import Json

VERSION = 3
"""Raised whenever the same recipe would train other ConvNets, but for rounding; ``zoo`` counts for the others too."""

CURVE_IMAGES = 256
"""Validation images a learning curve is measured on, at most."""

Tensors = dict[str, torch.Tensor]

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
        return self._identity("keep")

    @property
    def network_identity(self) -> str:
        """What the cache knows the trained network by: all that determines it, but not what it is asked."""
        return self._identity("keep", "test", "val", "curve_points")

    def _identity(self, *irrelevant: str) -> str:
        known = {k: v for k, v in self.as_json().items() if k not in irrelevant}
        version = VERSION if self.network == "convnet" else f"{VERSION}.{zoo.VERSION}"
        return sha256_text(canonical_json({"version": version, **known, **device_key()}))

    @property
    def key(self) -> Key:
        """The network's randomness."""
        return Key(self.seed).child("network", self.index)

    def make_network(self, parts: Parts) -> Network:
        """The network's code, for its images."""
        channels, height, width = parts[self.train].pixels.shape[1:]
        return make_network(self.network, channels, height, width, self.classes, self.recipe.width)

    def steps(self, parts: Parts) -> int:
        """Gradient steps of the training."""
        return steps_for(self.recipe, len(parts[self.train]))

    def work(self, parts: Parts) -> int:
        """What training takes, in images that go through a ConvNet."""
        return images_seen(self.recipe, len(parts[self.train])) * self.cost

    @property
    def cost(self) -> int:
        """What an image costs, in images of the ConvNet."""
        return zoo.COSTS.get(self.network, 1)


def do(
    job: Job,
    parts: Parts,
    advance: Callable[[int], None],
    device: torch.device | None = None,
    begun: Tensors | None = None,
) -> Run:
    """Train the network and predict the test images.

    Args:
        job: what to do.
        parts: where the images are.
        advance: told how much of :meth:`Job.work` was done since it was last called.
        device: where; the CPU if not given.
        begun: what :func:`begin` returned, if another did the first steps.
    """
    watch, parameters = Watch(job, parts), kept(job, device)
    if parameters is None:
        if begun:
            watch.curve = begun["curve"].tolist()
        training = _training(job, parts, device, begun)
        parameters = training.run(after_step=watch.after_step(advance))
        keep(job, parameters)
    else:
        watch(job.steps(parts), parameters)  # the curve's end; what came before is not known any more
    return watch.asked(parameters)


def begin(job: Job, parts: Parts, advance: Callable[[int], None], until: int) -> Tensors:
    """Train the network on the CPU up to that step; what :func:`do` goes on with, nothing if it is cached."""
    if kept(job, None) is not None:
        return {}
    watch, training = Watch(job, parts), _training(job, parts)
    training.run(until, watch.after_step(advance))
    return {**training.stopped, "curve": torch.tensor(watch.curve, dtype=torch.float64)}


def _training(job: Job, parts: Parts, device: torch.device | None = None, begun: Tensors | None = None) -> Training:
    part, network = parts[job.train], job.make_network(parts)
    return Training(network, part, job.statistics, job.recipe, job.key, device, begun)


def kept(job: Job, device: torch.device | None) -> Parameters | None:
    """The trained network from the cache, if it is to be kept and was."""
    found = read_cached("networks", job.network_identity) if job.keep else None
    return None if found is None else {name: tensor.to(device) for name, tensor in found.items()}


def keep(job: Job, parameters: Parameters) -> None:
    """Keep the trained network, if it is to be."""
    if job.keep:
        write_cached("networks", job.network_identity, parameters)


class Watch:
    """Looks at a job's network: on validation images while it is trained, on the test images when it is finished."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job, self.network, self.test = job, job.make_network(parts), parts[job.test]
        self.val = None if job.val is None else parts[job.val]
        self.batch, steps = min(job.recipe.batch, len(parts[job.train])), job.steps(parts)
        self.work = self.batch * job.cost
        spread = np.geomspace(min(10, steps), steps, job.curve_points)
        self.points = set() if self.val is None else set(np.unique(spread.astype(int)).tolist())
        self.curve: list[tuple[float, float, float]] = []

    def after_step(self, advance: Callable[[int], None]) -> AfterStep:
        """What a training calls: tells how much was done, and looks."""

        def look(done: int, parameters: Parameters) -> None:
            advance(self.work)
            self(done, parameters)

        return look

    def __call__(self, done: int, parameters: Parameters) -> None:
        """After a step: the curve's next point, if it is one."""
        if self.val is None or done not in self.points:
            return
        stride = -(-len(self.val) // CURVE_IMAGES)
        plain = replace(self.job.statistics, flips="none")
        seen = predict(self.network, parameters, self.val.pixels[::stride], plain)
        score = metrics(seen, self.val.labels[::stride])["balanced_accuracy"]
        self.curve.append((done, done * self.batch, score))

    def asked(self, parameters: Parameters) -> Run:
        """What the finished network says; the test images are seen here, once."""
        probabilities = predict(self.network, parameters, self.test.pixels, self.job.statistics)
        return Run(probabilities, np.array(self.curve, dtype=np.float64).reshape(-1, 3))
