"""Gradient matching, the plain way: torch modules, a loop over classes and layers.

Written from the papers (Zhao, Mopuri, Bilen, ICLR 2021, algorithm 1 and equation 10; Zhao,
Bilen, ICML 2021) to be obvious rather than fast. It is the tests' oracle and the
benchmark's opponent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reference import distribution_matching

EPS = 1e-6

Labelled = tuple[Tensor, Tensor]
"""Images (n, c, h, w) and their targets (n, outputs), zeros and ones."""


def convnet(channels: int, side: int, outputs: int, filters: int) -> nn.Sequential:
    """The classifier out of torch's modules (three blocks)."""
    features = (-(-side // 8)) ** 2 * filters
    return nn.Sequential(*distribution_matching.convnet(channels, side, filters), nn.Linear(features, outputs))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of one class for each image."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over images and findings, each a question of yes or no."""
    yes, no = logits.sigmoid().log(), (-logits).sigmoid().log()
    return -(targets * yes + (1 - targets) * no).mean()


def distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Of one layer's two gradients, summed over output rows."""
    a, b = real.flatten(1), synthetic.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)).sum()


def loss(
    model: nn.Module,
    synthetic: list[Labelled],
    real: list[Labelled],
    augment: Callable[[int, Tensor], Tensor],
    error: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """Sum over strata and over the weights of convolutions and of the linear layer.

    Args:
        model: the network.
        synthetic: synthetic images of each stratum.
        real: real images of each stratum.
        augment: the siamese augmentation of a stratum, the same for both sides.
        error: of logits and targets, what the network is trained by.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = torch.zeros(())
    for stratum in range(len(synthetic)):
        gradients = []
        for (images, targets), again in ((real[stratum], False), (synthetic[stratum], True)):
            found = error(model(augment(stratum, images)), targets)
            gradients.append(torch.autograd.grad(found, weights, create_graph=again))  # one is differentiated again
        for a, b in zip(*gradients, strict=True):
            total = total + distance(a.detach(), b)
    return total


def train(
    model: nn.Module,
    batches: list[Labelled],
    learning_rate: float,
    error: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> None:
    """One plain gradient step for each batch of images and targets."""
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for images, targets in batches:
        optimiser.zero_grad()
        error(model(images), targets).backward()
        optimiser.step()
