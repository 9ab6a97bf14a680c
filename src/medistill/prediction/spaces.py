"""Feature spaces that no method optimises in: fixed filters and principal components, nothing trained.

Distances between pictures mean little pixel by pixel. Energies of oriented band-pass filters,
pooled over places, are what texture and shape descriptors of the days before networks were made
of (Manjunath, Ma, "Texture features for browsing and retrieval of image data", PAMI 1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Features = npt.NDArray[np.float64]

PLACES = 4
"""Features are pooled over a grid of so many rows and columns."""

ORIENTATIONS = 6
WAVELENGTHS = (3.0, 6.0, 12.0)
"""Pixels of an image of 32 rows; filters are that size relative to the image."""

COMPONENTS = 64


@dataclass(frozen=True)
class Space:
    """A feature space, fitted to real images.

    Args:
        name: "filters" or "pixels".
        mean, scale: of the real images' raw features, which become zero and one.
        rotation: (raw, components) the principal components, each scaled to one standard deviation
            or, for weak ones, to less; None keeps the raw features.
    """

    name: str
    mean: Features
    scale: Features
    rotation: Features | None

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Features:
        """Features (n, d) of ``uint8`` pixels (n, c, h, w)."""
        values = (_RAW[self.name](pixels) - self.mean) / self.scale
        return values if self.rotation is None else values @ self.rotation


def fit(name: str, pixels: npt.NDArray[np.uint8]) -> Space:
    """A space whose scale, and components, come from these real images."""
    raw = _RAW[name](pixels)
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.0)
    _, singular, axes = np.linalg.svd((raw - mean) / scale, full_matrices=False)
    kept = min(COMPONENTS, int((singular > 1e-6 * singular[0]).sum()))
    if kept == 0:  # all images are equal
        return Space(name, mean, scale, None)
    deviation = singular[:kept] / math.sqrt(len(raw))
    # Weak components are noise; whitening them fully would drown the others in it.
    rotation = axes[:kept].T / np.sqrt(deviation * np.maximum(deviation, deviation.mean()))
    return Space(name, mean, scale, rotation)


def _shrunk(pixels: npt.NDArray[np.uint8], side: int) -> Tensor:
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    return functional.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _pixels(pixels: npt.NDArray[np.uint8]) -> Features:
    return np.concatenate(
        [_shrunk(pixels[i : i + 1024], 16).flatten(1).double().numpy() for i in range(0, len(pixels), 1024)]
    )


def _filters(pixels: npt.NDArray[np.uint8]) -> Features:
    bank = _bank()
    rows = []
    for start in range(0, len(pixels), 256):
        images = _shrunk(pixels[start : start + 256], 32)
        gray = images.mean(dim=1, keepdim=True)
        padded = functional.pad(gray, (bank.shape[-1] // 2,) * 4, mode="reflect")
        answers = functional.conv2d(padded, bank)
        even, odd = answers.chunk(2, dim=1)
        energy = (even.square() + odd.square() + 1e-8).sqrt()
        seen = [functional.adaptive_avg_pool2d(x, PLACES).flatten(1) for x in (energy, images)]
        # The strongest answer anywhere does not depend on where a finding lies.
        rows.append(torch.cat([*seen, energy.amax(dim=(2, 3)), energy.mean(dim=(2, 3))], dim=1))
    return torch.cat(rows).double().numpy()


def _bank() -> Tensor:
    """Even and odd Gabor filters, (2 · scales · orientations, 1, k, k), without answer to a constant."""
    radius = 9
    y, x = torch.meshgrid(torch.arange(-radius, radius + 1.0), torch.arange(-radius, radius + 1.0), indexing="ij")
    even, odd = [], []
    for wavelength in WAVELENGTHS:
        width = 0.4 * wavelength
        window = torch.exp(-(x.square() + y.square()) / (2 * width**2))
        for index in range(ORIENTATIONS):
            angle = math.pi * index / ORIENTATIONS
            phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
            wave = window * torch.cos(phase)
            even.append(wave - window * wave.sum() / window.sum())
            odd.append(window * torch.sin(phase))
    bank = torch.stack([*even, *odd])[:, None]
    return bank / bank.flatten(1).norm(dim=1)[:, None, None, None]


_RAW = {"filters": _filters, "pixels": _pixels}
SPACES = tuple(_RAW)
