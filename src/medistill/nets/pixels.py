"""From stored pixels to what a network sees."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(pixel / 255 - mean) / std`` per channel, float32."""
    scale = torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)
    return pixels * scale + shift
