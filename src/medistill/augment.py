"""Augmentation: siamese for distilling, one per image for training, of pictures and of volumes.

Siamese augmentation applies one drawn operation, with the same parameters, to real and
synthetic images alike and is differentiable. Source: Zhao, Bilen, "Dataset Condensation
with Differentiable Siamese Augmentation", ICML 2021. Which operations may be drawn follows
from the data set: no mirror images unless they keep their class, no saturation on gray.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medistill.data.image import Flips

Augmentation = Callable[[Tensor], Tensor]
"""Maps normalised images (n, c, *spatial) to augmented ones of the same shape."""

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, SCALE, ROTATION = 0.125, 0.5, 1.2, 15.0
OPERATIONS = ("colour", "crop", "cutout", "flip", "scale", "rotate")


def siamese(generator: torch.Generator, flips: Flips) -> Augmentation:
    """Draw one operation and its parameters; all images that it is applied to are augmented alike.

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
        mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
        return (x - mean) * contrast + mean

    return apply


def _crop(u: list[float], flips: Flips) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        border: list[int] = []
        place = [slice(None), slice(None)]
        for side, where in zip(x.shape[2:], u, strict=False):
            most = int(side * CROP + 0.5)
            start = int(where * (2 * most + 1))
            border = [most, most, *border]  # torch begins with the last axis
            place.append(slice(start, start + side))
        return functional.pad(x, border)[tuple(place)]

    return apply


def _cutout(u: list[float], flips: Flips) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        keep = torch.ones(x.shape[2:], dtype=x.dtype)
        edges = []
        for side, where in zip(x.shape[2:], u, strict=False):
            length = int(side * CUTOUT + 0.5)
            start = int(where * side) - length // 2
            edges.append(slice(max(0, start), max(0, start + length)))
        keep[tuple(edges)] = 0
        return x * keep.to(x.device)

    return apply


def _flip(u: list[float], flips: Flips) -> Augmentation:
    def apply(x: Tensor) -> Tensor:
        axes = range(2, x.ndim) if flips == "both" else [x.ndim - 1]
        axis = axes[int(u[1] * len(axes))]
        return x.flip(axis)

    return apply if u[0] < 0.5 else (lambda x: x)


def _scale(u: list[float], flips: Flips) -> Augmentation:
    low, span = 1 / SCALE, SCALE - 1 / SCALE

    def matrix(axes: int) -> list[list[float]]:
        return [[low + u[row] * span if row == column else 0.0 for column in range(axes)] for row in range(axes)]

    return _affine(matrix)


def _rotate(u: list[float], flips: Flips) -> Augmentation:
    """By one angle; volumes in one of three planes."""
    angle = math.radians((2 * u[0] - 1) * ROTATION)

    def matrix(axes: int) -> list[list[float]]:
        first, second = ((0, 1), (0, 2), (1, 2))[int(u[1] * 3) if axes == 3 else 0]
        rotation = [[float(row == column) for column in range(axes)] for row in range(axes)]
        rotation[first][first] = rotation[second][second] = math.cos(angle)
        rotation[first][second], rotation[second][first] = -math.sin(angle), math.sin(angle)
        return rotation

    return _affine(matrix)


def _affine(matrix: Callable[[int], list[list[float]]]) -> Augmentation:
    """An affine change by a matrix for so many axes, the last axis of the images first."""

    def apply(x: Tensor) -> Tensor:
        axes = x.ndim - 2
        rows = [[*row, 0.0] for row in matrix(axes)]
        theta = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), axes, axes + 1)
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
    """Augment each image by its own: rotation, scale, shift, contrast, brightness, mirror if allowed.

    Args:
        x: normalised images (n, c, *spatial).
        generator: CPU generator.
        flips: which mirror images keep their class.
    """
    return augment_each(x, sample_augmentation(len(x), generator, x.ndim - 2), flips)


def sample_augmentation(images: int, generator: torch.Generator, axes: int = 2) -> Tensor:
    """What :func:`augment_each` augments images by: numbers within -1 and 1 for each, (n, 9) for two axes, (n, 14)
    for three, on the CPU.
    """
    return torch.rand(images, 9 if axes == 2 else 14, generator=generator) * 2 - 1


def augment_each(x: Tensor, u: Tensor, flips: Flips) -> Tensor:
    """Images (n, c, *spatial) augmented each by its numbers, see :func:`sample_augmentation`."""
    theta = _theta(u, flips) if x.ndim == 4 else _theta_of_volumes(u, flips)
    grid = functional.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    single = (len(x), *(1,) * (x.ndim - 1))
    contrast = torch.exp(0.3 * u[:, 7]).to(x).view(single)
    mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return (x - mean) * contrast + mean + (0.3 * u[:, 8]).to(x).view(single)


def _theta(u: Tensor, flips: Flips) -> Tensor:
    """Affine matrices of pictures, (n, 2, 3)."""
    n = len(u)
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
    return torch.stack(rows, 1)


def _theta_of_volumes(u: Tensor, flips: Flips) -> Tensor:
    """Affine matrices of volumes, (n, 3, 4): one rotation in each plane, a scale, shift and mirror for each axis."""
    n = len(u)
    linear = torch.eye(3).expand(n, 3, 3)
    for column, (first, second) in zip((0, 9, 10), ((0, 1), (0, 2), (1, 2)), strict=True):
        angle = u[:, column] * math.radians(ROTATION)
        turn = torch.eye(3).repeat(n, 1, 1)
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        linear = turn @ linear
    scale = torch.exp(u[:, [1, 2, 11]] * math.log(SCALE))
    mirror = torch.ones(n, 3)
    if flips != "none":
        mirrored = [5, 6, 12] if flips == "both" else [5]
        mirror[:, : len(mirrored)] = torch.where(u[:, mirrored] < 0, -1.0, 1.0)
    shift = 2 * CROP * u[:, [3, 4, 13]]
    return torch.cat([linear * (scale * mirror)[:, None, :], shift[:, :, None]], 2)
