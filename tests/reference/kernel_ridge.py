"""Kernel ridge regression on features, the plain way: one kernel entry at a time, one real image at a time.

Written from the paper (Zhou, Nezhadarya, Ba, NeurIPS 2022, equations 2 and 4) to be obvious
rather than fast. It is the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def loss(
    embed: Callable[[Tensor], Tensor], synthetic: Tensor, labels: Tensor, real: Tensor, truth: Tensor, ridge: float
) -> Tensor:
    """Half the mean squared error of the regression over real images.

    Args:
        embed: images (n, c, h, w) → (n, d).
        synthetic, labels: synthetic images and the regression's targets for them, (n, classes).
        real, truth: real images and what should be predicted for them, (m, classes).
        ridge: share of the kernel's mean diagonal.
    """
    features = [embed(image[None])[0] for image in synthetic]
    kernel = torch.stack([torch.stack([(a * b).sum() for b in features]) for a in features])
    inverse = torch.linalg.inv(kernel + ridge * kernel.trace() / len(synthetic) * torch.eye(len(synthetic)))
    total = torch.zeros(())
    for image, wanted in zip(real, truth, strict=True):
        seen = embed(image[None])[0]
        row = torch.stack([(seen * b).sum() for b in features])
        total = total + ((row @ inverse @ labels - wanted) ** 2).sum()
    return 0.5 * total / len(real)
