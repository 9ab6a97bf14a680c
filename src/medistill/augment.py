"""Random changes to images: siamese for distilling, one per image for training.

Siamese augmentation applies one drawn change, with the same parameters, to real and
synthetic images alike and is differentiable. Source: Zhao, Bilen, "Dataset Condensation
with Differentiable Siamese Augmentation", ICML 2021. Which changes may be drawn follows
from the data set: no mirror images unless they keep their class, no saturation on gray.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medistill.data.dataset import Flips

Augmentation = Callable[[Tensor], Tensor]
"""Maps normalised images (n, c, h, w) to changed ones of the same shape."""

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, SCALE, ROTATION = 0.125, 0.5, 1.2, 15.0
OPERATIONS = ("colour", "crop", "cutout", "flip", "scale", "rotate")


def siamese(generator: torch.Generator, flips: Flips) -> Augmentation:
    """Draw one operation and its parameters; all images that it is applied to change alike.

    Args:
        generator: where the numbers come from; always the same count is drawn.
        flips: which mirror images keep their class.
    """
    allowed = [name for name in OPERATIONS if name != "flip" or flips != "none"]
    choice = int(torch.randint(len(allowed), (1,), generator=generator))
    u = torch.rand(4, generator=generator).tolist()
    return OPERATION[allowed[choice]](u, flips)


def _colour(u: list[float], flips: Flips) -> Augmentation:
    brightness, saturation, contrast = (u[0] - 0.5) * BRIGHTNESS, u[1] * SATURATION, u[2] + CONTRAST

    def apply(x: Tensor) -> Tensor:
        x = x + brightness
        if x.shape[1] > 1:
            gray = x.mean(1, keepdim=True)
            x = (x - gray) * saturation + gray
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * contrast + mean

    return apply


def _crop(u: list[float], flips: Flips) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        most = int(height * CROP + 0.5), int(width * CROP + 0.5)
        top, left = int(u[0] * (2 * most[0] + 1)), int(u[1] * (2 * most[1] + 1))
        padded = functional.pad(x, (most[1], most[1], most[0], most[0]))
        return padded[:, :, top : top + height, left : left + width]

    return apply


def _cutout(u: list[float], flips: Flips) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        keep = torch.ones(x.shape[2:], dtype=x.dtype)
        edges = []
        for side, where in zip(x.shape[2:], u, strict=False):
            length = int(side * CUTOUT + 0.5)
            start = int(where * side) - length // 2
            edges.append(slice(max(0, start), max(0, start + length)))
        keep[edges[0], edges[1]] = 0
        return x * keep.to(x.device)

    return apply


def _flip(u: list[float], flips: Flips) -> Augmentation:
    axis = 2 if flips == "both" and u[1] < 0.5 else 3
    return (lambda x: x.flip(axis)) if u[0] < 0.5 else (lambda x: x)


def _scale(u: list[float], flips: Flips) -> Augmentation:
    low, span = 1 / SCALE, SCALE - 1 / SCALE
    return _affine(((low + u[0] * span, 0.0, 0.0), (0.0, low + u[1] * span, 0.0)))


def _rotate(u: list[float], flips: Flips) -> Augmentation:
    angle = math.radians((2 * u[0] - 1) * ROTATION)
    return _affine(((math.cos(angle), -math.sin(angle), 0.0), (math.sin(angle), math.cos(angle), 0.0)))


def _affine(matrix: tuple[tuple[float, ...], ...]) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        theta = torch.tensor(matrix, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)

    return apply


OPERATION: dict[str, Callable[[list[float], Flips], Augmentation]] = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def for_training(x: Tensor, generator: torch.Generator, flips: Flips) -> Tensor:
    """Change each image by its own: rotation, scale, shift, contrast, brightness, mirror if allowed.

    Args:
        x: normalised images (n, c, h, w).
        generator: CPU generator.
        flips: which mirror images keep their class.
    """
    return changed_each(x, drawn_changes(len(x), generator), flips)


def drawn_changes(images: int, generator: torch.Generator) -> Tensor:
    """What :func:`changed_each` changes images by: nine numbers within -1 and 1 for each, (n, 9), on the CPU."""
    return torch.rand(images, 9, generator=generator) * 2 - 1


def changed_each(x: Tensor, u: Tensor, flips: Flips) -> Tensor:
    """Images (n, c, h, w) changed each by its nine numbers (n, 9), which are on the CPU."""
    n = len(x)
    angle = u[:, 0] * math.radians(ROTATION)
    scale_y, scale_x = (torch.exp(u[:, i] * math.log(SCALE)) for i in (1, 2))
    mirror_x = torch.where(u[:, 5] < 0, -1.0, 1.0) if flips != "none" else torch.ones(n)
    mirror_y = torch.where(u[:, 6] < 0, -1.0, 1.0) if flips == "both" else torch.ones(n)
    # affine_grid spans −1 to 1, so a shift by a share of the side counts twice.
    shift = 2 * CROP * u[:, 3:5]
    cos, sin = angle.cos(), angle.sin()
    rows = (
        torch.stack([mirror_x * scale_x * cos, -mirror_y * scale_x * sin, shift[:, 0]], 1),
        torch.stack([mirror_x * scale_y * sin, mirror_y * scale_y * cos, shift[:, 1]], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = torch.exp(0.3 * u[:, 7]).to(x).view(n, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean + (0.3 * u[:, 8]).to(x).view(n, 1, 1, 1)
