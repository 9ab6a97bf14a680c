"""Gradient matching, the plain way: torch modules, a loop over classes and layers.

Written from the papers (Zhao, Mopuri, Bilen, ICLR 2021, algorithm 1 and equation 10; Zhao,
Bilen, ICML 2021) to be obvious rather than fast. It is the tests' oracle and the
benchmark's opponent.
"""

from __future__ import annotations

from collections.abc import Callable

import reference_dm
import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


def convnet(channels: int, side: int, classes: int, filters: int) -> nn.Sequential:
    """The classifier out of torch's modules (three blocks)."""
    features = (-(-side // 8)) ** 2 * filters
    return nn.Sequential(*reference_dm.convnet(channels, side, filters), nn.Linear(features, classes))


def distance(real: Tensor, made: Tensor) -> Tensor:
    """Of one layer's two gradients, summed over output rows."""
    a, b = real.flatten(1), made.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)).sum()


def loss(model: nn.Module, made: list[Tensor], real: list[Tensor], change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Sum over classes and over the weights of convolutions and of the linear layer.

    Args:
        model: the network.
        made: images made of each class.
        real: real images of each class.
        change: the siamese augmentation of a class, the same for both sides.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = torch.zeros(())
    for label in range(len(made)):
        gradients = []
        for images, again in ((real[label], False), (made[label], True)):  # only one is differentiated again
            answer = model(change(label, images))
            error = functional.cross_entropy(answer, torch.full((len(images),), label))
            gradients.append(torch.autograd.grad(error, weights, create_graph=again))
        for a, b in zip(*gradients, strict=True):
            total = total + distance(a.detach(), b)
    return total


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], learning_rate: float) -> None:
    """One plain gradient step for each batch of images and labels."""
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for images, labels in batches:
        optimiser.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
