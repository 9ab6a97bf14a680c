"""Feature spaces that no method optimises in: filters, patches and principal components, nothing trained.

Distances between pictures mean little pixel by pixel. Energies of oriented band-pass filters,
pooled over places, are what texture and shape descriptors of the days before networks were made
of (Manjunath, Ma, "Texture features for browsing and retrieval of image data", PAMI 1996). Answers
to random whitened patches of the real images themselves, pooled, are nearly as good to classify by
as what networks learn (Coates, Ng, Lee, "An analysis of single-layer networks in unsupervised
feature learning", AISTATS 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medistill.aliases import Pixels
from medistill.data.image import white_of
from medistill.keys import Key

Features = npt.NDArray[np.float64]
Raw = Callable[[Pixels], Features]

PLACES = 4
"""Features are pooled over a grid of so many rows and columns."""

ORIENTATIONS = 6
WAVELENGTHS = (3.0, 6.0, 12.0)
"""Pixels of an image of 32 rows; filters are that size relative to the image."""

COMPONENTS = 64

PATCHES, PATCH_SIDE, DRAWN = 192, 5, 20_000
"""How many patches are filters, of how many rows and columns, out of how many that whitening is learned from."""

PATCH_ROWS, PATCH_PLACES = 28, 2
"""Rows of the images that patches are cut from, and of the grid that answers are pooled over."""

THRESHOLD = 0.25
"""Of answers, which count by how far they lie above it, positive and negative ones apart."""


@dataclass(frozen=True)
class Space:
    """A feature space, fitted to real images.

    Args:
        name: one of :data:`SPACES`.
        raw: features as they are computed from pixels.
        mean, scale: of the real images' raw features, which become zero and one.
        rotation: (raw, components) the principal components, each scaled to one standard deviation
            or, for weak ones, to less; None keeps the raw features.
        linear: classes are to be told apart by planes; else by distances, as there are few components.
    """

    name: str
    raw: Raw
    mean: Features
    scale: Features
    rotation: Features | None
    linear: bool = False

    def __call__(self, pixels: Pixels) -> Features:
        """Features (n, d) of pixels (n, c, h, w)."""
        values = (self.raw(pixels) - self.mean) / self.scale
        return values if self.rotation is None else values @ self.rotation


def fit(name: str, pixels: Pixels) -> Space:
    """A space whose scale, and components, come from these real images."""
    compute: Raw = partial(_patches, learned=_learned_patches(pixels)) if name == "patches" else _RAW[name]
    raw = compute(pixels)
    mean, scale = raw.mean(axis=0), raw.std(axis=0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.0)
    if name == "patches":
        # What hardly ever answers is not made as loud as the rest.
        return Space(name, compute, mean, scale + 1e-3 * raw.std(), None, linear=True)
    _, singular, axes = np.linalg.svd((raw - mean) / scale, full_matrices=False)
    kept = min(COMPONENTS, int((singular > 1e-6 * singular[0]).sum()))
    if kept == 0:  # all images are equal
        return Space(name, compute, mean, scale, None)
    deviation = singular[:kept] / math.sqrt(len(raw))
    # Weak components are noise; whitening them fully would drown the others in it.
    rotation = axes[:kept].T / np.sqrt(deviation * np.maximum(deviation, deviation.mean()))
    return Space(name, compute, mean, scale, rotation)


def _shrunk(pixels: Pixels, side: int) -> Tensor:
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float() / white_of(pixels.dtype)
    return functional.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _pixels(pixels: Pixels) -> Features:
    return np.concatenate(
        [_shrunk(pixels[i : i + 1024], 16).flatten(1).double().numpy() for i in range(0, len(pixels), 1024)]
    )


def _filters(pixels: Pixels) -> Features:
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


Patches = tuple[Tensor, Tensor]
"""Mean of normalised patches, (d,), and filters on what is left, (patches, d), with the whitening in them."""


def _learned_patches(pixels: Pixels) -> Patches:
    """Random whitened patches of the real images, each of length one."""
    rng = Key(0).child("patches").numpy()
    images = _shrunk(pixels, PATCH_ROWS)
    last = PATCH_ROWS - PATCH_SIDE + 1
    rows = torch.from_numpy(rng.integers(0, len(images), DRAWN))
    y, x = (torch.from_numpy(rng.integers(0, last, DRAWN))[:, None, None] for _ in range(2))
    offset = torch.arange(PATCH_SIDE)
    cut = images[rows[:, None, None], :, y + offset[:, None], x + offset]  # (drawn, rows, columns, channels)
    drawn = _normalised(cut.permute(0, 3, 1, 2).flatten(1).double(), 1)
    mean = drawn.mean(dim=0)
    values, vectors = torch.linalg.eigh((drawn - mean).T.cov())
    whitening = vectors @ torch.diag((values.clamp(min=0) + 0.05 * values.mean() + 1e-6).rsqrt()) @ vectors.T
    chosen = ((drawn - mean) @ whitening)[torch.from_numpy(rng.permutation(DRAWN)[:PATCHES])]
    return mean, (chosen / (chosen.norm(dim=1, keepdim=True) + 1e-9)) @ whitening


def _normalised(patches: Tensor, dim: int) -> Tensor:
    """Without brightness and, but for flat ones, contrast; pixels are within 0 to 1."""
    return (patches - patches.mean(dim, keepdim=True)) / (patches.var(dim, keepdim=True) + 1e-3).sqrt()


def _patches(pixels: Pixels, learned: Patches) -> Features:
    mean, filters = (tensor.float() for tensor in learned)
    side = PATCH_ROWS - PATCH_SIDE + 1
    rows = []
    for start in range(0, len(pixels), 16):  # few, for the cache: less than half the time that 64 take
        seen = functional.unfold(_shrunk(pixels[start : start + 16], PATCH_ROWS), PATCH_SIDE)
        answers = filters @ (_normalised(seen, 1) - mean[:, None])
        both = torch.cat([(answers - THRESHOLD).relu(), (-answers - THRESHOLD).relu()], dim=1)
        rows.append(functional.adaptive_avg_pool2d(both.unflatten(2, (side, side)), PATCH_PLACES).flatten(1))
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


_RAW: dict[str, Raw] = {"filters": _filters, "pixels": _pixels}
SPACES = (*_RAW, "patches")
