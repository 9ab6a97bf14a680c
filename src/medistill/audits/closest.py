"""The real images most like those of a package, by structure and by what a random network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from medistill.aliases import Pixels
from medistill.audits.features import features_beside
from medistill.data.duplicates import unit_rows
from medistill.data.image import encoded, white_of
from medistill.keys import Key
from medistill.package.package import Package

CANDIDATES = 10
"""Real images, the nearest by correlation, whose structural similarity is computed."""

WINDOW = 7
"""Pixels a side of the window in which structure is compared, at most."""


class Closest(NamedTuple):
    """For each image of a package the most similar real one.

    Args:
        similarity: (n,), at most 1.
        row: (n,) which real image it is.
    """

    similarity: npt.NDArray[np.float64]
    row: npt.NDArray[np.int64]


def closest_in_structure(images: Pixels, real: Pixels) -> Closest:
    """By structural similarity, among the real images that correlate most, at the images' own size.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 2004.

    Args:
        images: (n, c, *spatial) as stored.
        real: (m, c, *spatial), at least as large.
    """
    from monai.metrics.regression import compute_ssim_and_cs

    small = encoded(real, images.shape[2:])
    correlation = unit_rows(images.reshape(len(images), -1)) @ unit_rows(small.reshape(len(small), -1)).T
    few = min(CANDIDATES, len(small))
    chosen = np.argpartition(-correlation, few - 1, axis=1)[:, :few]
    dimensions = images.ndim - 2
    side = min(WINDOW, *(n - (n + 1) % 2 for n in images.shape[2:]))
    best, row = np.zeros(len(images)), np.zeros(len(images), dtype=np.int64)
    for number, image in enumerate(images):
        others = torch.from_numpy(small[chosen[number]]).float()
        own = torch.from_numpy(image.copy()).float().expand_as(others)
        found, _ = compute_ssim_and_cs(
            own, others, dimensions, [side] * dimensions, [1.5] * dimensions,
            data_range=float(white_of(images.dtype)), kernel_type="uniform",
        )  # fmt: skip
        similarity = found.flatten(1).mean(1)
        best[number], row[number] = float(similarity.max()), chosen[number][int(similarity.argmax())]
    return Closest(best, row)


def closest_in_features(package: Package, sides: Sequence[Pixels], key: Key) -> list[Closest]:
    """By correlation of a random network's features, on each side; real images at the size that networks see."""
    own, *others = features_beside(package, sides, key)
    mean = np.concatenate(others).mean(axis=0)
    products = [unit_rows(own - mean) @ unit_rows(side - mean).T for side in others]
    return [Closest(product.max(axis=1).astype(np.float64), product.argmax(axis=1)) for product in products]
