"""Experts: networks trained on the real images, their parameters kept after every epoch.

An expert is a file in the cache, named by everything that determines it, so that another
package of the same data, or the same run after a stop, finds it there. Parameters are kept in
half precision, which halves the file and changes them by a relative 0.0005 at most.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from medistill.augment import siamese
from medistill.distil.descent import loss_gradient
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Batch, RealImages
from medistill.files import canonical_json, has_cached, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.parallel import Workers, go_on, one_thread
from medistill.runtime import device_key, wait_for

VERSION = 3
"""Raised whenever the same settings would train other experts."""


@dataclass(frozen=True)
class ExpertSettings:
    """How an expert is trained: plain gradient descent, as published for trajectory matching.

    Args:
        epochs: passes over the real images; parameters are kept before the first and after each.
        learning_rate: of plain gradient descent.
        batch_size: real images per step.
        filters, depth: the network's shape.
        augment: siamese augmentation, one drawn for each step.
        stem: of the network, by the images' size if None.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    filters: int
    depth: int | None
    augment: bool
    stem: int | None = None


def flatten(parameters: Parameters) -> Tensor:
    """All parameters as one vector (p,)."""
    return torch.cat([p.flatten() for p in parameters.values()])


def unflatten(vector: Tensor, like: Parameters) -> Parameters:
    """The parameters that a vector holds, as views of it, in the shapes of ``like``."""
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)}


def trajectory(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> Tensor:
    """An expert's parameters, (epochs + 1, p) float16: from the cache, or trained and kept there.

    Args:
        problem: what is distilled.
        real: its images, which answer the query "training".
        settings: how it is trained.
        key: its randomness, one for each expert.
    """
    identity = _identity(problem, real, settings, key)
    kept = read_cached("experts", identity) or {}
    if "trajectory" in kept:
        return kept["trajectory"]
    trained = _train(problem, real, settings, key)
    # Without a cache it is trained whenever it is needed.
    write_cached("experts", identity, {"trajectory": trained})
    return trained


def has_expert(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> bool:
    """Whether the cache has the expert."""
    return has_cached("experts", _identity(problem, real, settings, key))


def _identity(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> str:
    return sha256_text(
        canonical_json(
            {
                "version": VERSION,
                "settings": asdict(settings),
                "key": [key.seed, *key.path],
                "data": real.digest,
                "problem": [problem.task.kind, asdict(problem.normalisation)],
                "torch": torch.__version__,
                **device_key(),
            }
        )
    )


def expert_seconds(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> float:
    """How long an expert takes on one thread of this machine: measured on a step, after one that does not count."""
    alone, network = problem.worked_by(Workers()), _network(problem, settings)
    batch, parameters = next(real.training(settings.batch_size, key)).value, problem.parameters(network, key)
    with one_thread():
        _gradient(alone, network, parameters, batch)
        wait_for(problem.device)
        started = time.monotonic()
        _gradient(alone, network, parameters, batch)
        wait_for(problem.device)
        step = time.monotonic() - started
    return step * settings.epochs * -(-len(real) // settings.batch_size)


def _network(problem: DistillationProblem, settings: ExpertSettings) -> ConvNet:
    depth, stem = settings.depth or 0, settings.stem or 0
    return ConvNet(problem.channels, problem.shape, problem.outputs, settings.filters, depth, stem)


def _gradient(problem: DistillationProblem, network: ConvNet, parameters: Parameters, batch: Batch) -> Parameters:
    def loss(learned: Parameters, part: slice) -> Tensor:
        return problem.task.loss(network.logits(learned, batch.images[part]), batch.targets[part])

    return loss_gradient(problem, loss, parameters, len(batch.images))


def _train(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> Tensor:
    network = _network(problem, settings)
    parameters = problem.parameters(network, key.child("parameters"))
    kept = [flatten(parameters).half().cpu()]
    for epoch in range(settings.epochs):
        here = key.child("epoch", epoch)
        for step, answer in enumerate(real.training(settings.batch_size, here)):
            go_on()
            x, targets = answer.value.images, answer.value.targets
            if settings.augment:
                x = siamese(here.child("augment", step).generator(), problem.normalisation.flips)(x)
            slopes = _gradient(problem, network, parameters, Batch(x, targets))
            parameters = {name: p - settings.learning_rate * slopes[name] for name, p in parameters.items()}
        kept.append(flatten(parameters).half().cpu())
    return torch.stack(kept)
