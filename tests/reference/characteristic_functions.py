"""Characteristic-function matching, the plain way: complex numbers, one image and one frequency at a time.

Written from the paper (Wang et al., CVPR 2025, equations 3 to 6) to be obvious rather than fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def loss(
    embed: Callable[[Tensor], Tensor],
    frequencies: Tensor,
    synthetic: list[Tensor],
    real: list[Tensor],
    amplitude: float,
) -> Tensor:
    """Sum over classes of the mean difference over frequencies.

    Args:
        embed: images (n, c, h, w) → (n, d); brought to unit length here.
        frequencies: (d, frequencies).
        synthetic, real: images of each class.
        amplitude: weight of amplitude differences; phase differences have the rest.
    """
    total = torch.zeros(())
    for label in range(len(synthetic)):
        for frequency in frequencies.T:
            sides = []
            for images in (synthetic[label], real[label]):
                values = []
                for image in images:
                    embedding = embed(image[None])[0]
                    values.append(torch.exp(1j * (frequency @ embedding / embedding.norm())))
                sides.append(torch.stack(values).mean())
            r, s = sides[0].abs(), sides[1].abs()
            angle = sides[0].angle() - sides[1].angle()
            difference = amplitude * (r - s) ** 2 + (1 - amplitude) * 2 * r * s * (1 - angle.cos())
            total = total + difference / frequencies.shape[1]
    return total
