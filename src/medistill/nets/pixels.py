"""From stored pixels to what a network sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(pixel / 255 - mean) / std`` per channel, float32."""
    scale = torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)
    return pixels * scale + shift


def decode(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w) as networks see them, at ``size``: those stored smaller are enlarged bilinearly.

    Storing at 1/f of the side lets the bytes of one image hold f² of them: the multi-formation of
    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.
    """
    if images.shape[2:] == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def encode(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w) made smaller, to ``size``, each pixel the mean of what it covers."""
    return images if images.shape[2:] == size else functional.adaptive_avg_pool2d(images, size)
