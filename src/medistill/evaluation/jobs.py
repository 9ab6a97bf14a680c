"""One network to train and to ask, as a job that any worker can do to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from medistill.aliases import Json
from medistill.config import Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.evaluation.cache import TrainedRun
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets import zoo
from medistill.nets.convnet import Parameters
from medistill.nets.training import AfterStep, Training, images_seen, predict_probabilities, steps_for
from medistill.nets.zoo import Network, make_network
from medistill.runtime import device as device_of_command
from medistill.runtime import device_key
from medistill.tasks.task import Task, numbered

VERSION = 4
"""Raised whenever the same recipe would train other ConvNets, but for rounding; ``zoo`` counts for the others too."""

CURVE_IMAGES = 256
"""Validation images a learning curve is measured on, at most."""

Tensors = dict[str, torch.Tensor]

Splits = dict[str, TensorSplit]
"""Images and labels by the digest of their content."""


@dataclass(frozen=True)
class Job:
    """Everything that determines a trained network's predictions.

    Args:
        train, test, val: digests of the splits; ``val`` may be missing.
        normalisation: how the pixels of all three are normalised.
        kind, outputs: of the task.
        recipe: how it is trained.
        curve_points: how often it is looked at while training, on validation images.
        seed, index: randomness; networks of one index start alike in every arm.
        architecture: which of ``medistill.config.Net`` is trained.
        keep: keep the trained network itself in the cache, so that it can answer other images without training.
        device_kind: "cpu" or "cuda", whose rounding the result has; that of this command if not given.
    """

    train: str
    test: str
    val: str | None
    normalisation: Normalisation
    kind: str
    outputs: int
    recipe: Recipe
    curve_points: int
    seed: int
    index: int
    architecture: str = "convnet"
    keep: bool = False
    device_kind: str = field(default_factory=lambda: device_of_command().type)

    def as_json(self) -> Json:
        return {**asdict(self), "recipe": self.recipe.model_dump(mode="json")}

    @property
    def task(self) -> Task:
        """What the network learns; how outputs are called does not matter to it."""
        return numbered(self.kind, self.outputs)

    @property
    def identity(self) -> str:
        """What the cache knows its result by."""
        return self._identity("keep")

    @property
    def network_identity(self) -> str:
        """What the cache knows the trained network by: all that determines it, but not what it is asked."""
        return self._identity("keep", "test", "val", "curve_points")

    def _identity(self, *irrelevant: str) -> str:
        relevant = {k: v for k, v in self.as_json().items() if k not in (*irrelevant, "device_kind")}
        version = VERSION if self.architecture == "convnet" else f"{VERSION}.{zoo.VERSION}"
        return sha256_text(canonical_json({"version": version, **relevant, **device_key(self.device_kind)}))

    @property
    def key(self) -> Key:
        """The network's randomness."""
        return Key(self.seed).child("network", self.index)

    def make_network(self, splits: Splits) -> Network:
        """The network's code, for its images."""
        data = splits[self.train]
        return make_network(
            self.architecture, data.channels, data.shape, self.outputs, self.recipe.width, self.recipe.stem or 0
        )

    def steps(self, splits: Splits) -> int:
        """Gradient steps of the training."""
        return steps_for(self.recipe, len(splits[self.train]))

    def work(self, splits: Splits) -> int:
        """What training takes, in images that go through a ConvNet."""
        return images_seen(self.recipe, len(splits[self.train])) * self.cost

    @property
    def cost(self) -> int:
        """What an image costs, in images of the ConvNet."""
        return zoo.COSTS.get(self.architecture, 1)


def do_job(
    job: Job,
    splits: Splits,
    advance: Callable[[int], None],
    device: torch.device | None = None,
    begun: Tensors | None = None,
) -> TrainedRun:
    """Train the network and predict the test images.

    Args:
        job: what to do.
        splits: where the images are.
        advance: told how much of :meth:`Job.work` was done since it was last called.
        device: where; the CPU if not given.
        begun: what :func:`run_prefix` returned, if another did the first steps.
    """
    watch, parameters = Watch(job, splits), kept_network(job, device)
    if parameters is None:
        if begun:
            watch.curve = begun["curve"].tolist()
        training = _training(job, splits, device, begun)
        parameters = training.run(after_step=watch.after_step(advance))
        keep_network(job, parameters)
    else:
        watch(job.steps(splits), parameters)  # the curve's end; what came before is not known any more
    return watch.asked(parameters)


def run_prefix(job: Job, splits: Splits, advance: Callable[[int], None], until: int) -> Tensors:
    """Train the network on the CPU up to that step; what :func:`do_job` goes on with, nothing if it is cached."""
    if kept_network(job, None) is not None:
        return {}
    watch, training = Watch(job, splits), _training(job, splits)
    training.run(until, watch.after_step(advance))
    return {**training.stopped, "curve": torch.tensor(watch.curve, dtype=torch.float64)}


def _training(job: Job, splits: Splits, device: torch.device | None = None, begun: Tensors | None = None) -> Training:
    data, network = splits[job.train], job.make_network(splits)
    return Training(network, data, job.task, job.normalisation, job.recipe, job.key, device, begun)


def kept_network(job: Job, device: torch.device | None) -> Parameters | None:
    """The trained network from the cache, if it is to be kept and was."""
    parameters = read_cached("networks", job.network_identity) if job.keep else None
    return None if parameters is None else {name: tensor.to(device) for name, tensor in parameters.items()}


def is_kept(job: Job) -> bool:
    """Whether the cache has the trained network, which then has only to be asked."""
    return kept_network(job, None) is not None


def keep_network(job: Job, parameters: Parameters) -> None:
    """Keep the trained network, if it is to be."""
    if job.keep:
        write_cached("networks", job.network_identity, parameters)


class Watch:
    """Looks at a job's network: on validation images while it is trained, on the test images when it is finished."""

    def __init__(self, job: Job, splits: Splits) -> None:
        self.job, self.network, self.test = job, job.make_network(splits), splits[job.test]
        self.val = None if job.val is None else splits[job.val]
        self.batch, steps = min(job.recipe.batch_size, len(splits[job.train])), job.steps(splits)
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
        plain, task = replace(self.job.normalisation, flips="none"), self.job.task
        probabilities = predict_probabilities(self.network, parameters, self.val.pixels[::stride], task, plain)
        score = task.scores(probabilities, self.val.targets[::stride])[task.primary]
        self.curve.append((done, done * self.batch, score))

    def asked(self, parameters: Parameters) -> TrainedRun:
        """What the finished network says; the test images are seen here, once."""
        job = self.job
        probabilities = predict_probabilities(self.network, parameters, self.test.pixels, job.task, job.normalisation)
        return TrainedRun(probabilities, np.array(self.curve, dtype=np.float64).reshape(-1, 3))
