"""Experts: networks trained on the real images, their parameters kept after every epoch.

An expert is a file in the cache, named by everything that determines it, so that another
package of the same data, or the same run after a stop, finds it there. Parameters are kept in
half precision, which halves the file and changes them by a relative 0.0005 at most.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from medistill.augment import siamese
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import RealImages
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.runtime import device_key

VERSION = 2
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
    """

    epochs: int
    learning_rate: float
    batch_size: int
    filters: int
    depth: int | None
    augment: bool


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
    identity = sha256_text(
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
    kept = read_cached("experts", identity)
    if kept is not None and "trajectory" in kept:
        return kept["trajectory"]
    trained = _train(problem, real, settings, key)
    write_cached("experts", identity, {"trajectory": trained})  # without a cache it is trained whenever it is needed
    return trained


def _train(problem: DistillationProblem, real: RealImages, settings: ExpertSettings, key: Key) -> Tensor:
    network = ConvNet(problem.channels, problem.shape, problem.outputs, settings.filters, settings.depth or 0)
    parameters = problem.parameters(network, key.child("parameters"))
    kept = [flatten(parameters).half().cpu()]
    for epoch in range(settings.epochs):
        here = key.child("epoch", epoch)
        for step, answer in enumerate(real.training(settings.batch_size, here)):
            x, targets = answer.value.images, answer.value.targets
            if settings.augment:
                x = siamese(here.child("augment", step).generator(), problem.normalisation.flips)(x)
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            with torch.enable_grad():
                loss = problem.task.loss(network.logits(parameters, x), targets)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            parameters = {
                name: parameter.detach() - settings.learning_rate * gradient
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            }
        kept.append(flatten(parameters).detach().half().cpu())
    return torch.stack(kept)
