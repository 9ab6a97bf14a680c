"""Distribution matching, the plain way: a loop over classes, a new network at each step, nothing reused.

Written from the paper (Zhao, Bilen, WACV 2023, equation 6) to be obvious rather than fast.
It is the tests' oracle and the benchmark's opponent. Networks, augmentation and draws are
handed in, so that both sides can be given the same ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def convnet(channels: int, side: int, filters: int) -> nn.Sequential:
    """The embedding network out of torch's modules (three blocks)."""
    blocks: list[nn.Module] = []
    for fan in (channels, filters, filters):
        blocks += [
            nn.Conv2d(fan, filters, 3, padding=1),
            nn.GroupNorm(filters, filters),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    pad = -side % 8
    before, after = pad // 2, pad - pad // 2
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), *blocks, nn.Flatten())


def loss(
    embed: Callable[[Tensor], Tensor],
    synthetic: list[Tensor],
    real: list[Tensor],
    augment: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Sum over classes of the squared distance between the mean embeddings of real and synthetic images.

    Args:
        embed: images (n, c, h, w) → (n, d).
        synthetic: synthetic images of each class.
        real: real images of each class.
        augment: the siamese augmentation of a class, the same for both sides.
    """
    total = torch.zeros(())
    for label in range(len(synthetic)):
        mean_real = embed(augment(label, real[label])).mean(dim=0)
        mean_synthetic = embed(augment(label, synthetic[label])).mean(dim=0)
        total = total + ((mean_real - mean_synthetic) ** 2).sum()
    return total
