"""Which intensities images hold, and which of them become black and white."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medistill.aliases import RawImages
from medistill.data.arrays import blocks

RARE = 0.1
"""Percent of pixels at either end that may be outliers."""

GREATEST_INTENSITY = 1e12
"""What a package can record of a window."""

LOOKED_AT = 1 << 20
"""Pixels whose intensities tell what is usual, at most; spread evenly over images."""


class Range(NamedTuple):
    """From the least to the greatest intensity."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


def between_percentiles(values: npt.NDArray[Any], among: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values from the 0.5th to the 99.5th percentile of some, as 0 to 1: how a picture without a unit is shown."""
    low, high = np.percentile(among, [0.5, 99.5])
    if high <= low:
        low, high = among.min(), max(among.max(), among.min() + 1)
    return np.asarray(((values - low) / (high - low)).clip(0, 1))


def within_bounds(values: npt.NDArray[Any], nan: float = 0.0) -> npt.NDArray[np.float64]:
    """Values as float64 that can be computed with: none beyond ±:data:`GREATEST_INTENSITY`, none NaN."""
    most = np.float64(GREATEST_INTENSITY)  # a Python float would become one of 16 bits, which ends before
    return np.nan_to_num(np.clip(values, -most, most).astype(np.float64), nan=nan)


def _finite(images: RawImages) -> Iterator[npt.NDArray[Any]]:
    """Pixels that are neither NaN nor infinite, block after block."""
    for _, block in blocks(images):
        yield block[np.isfinite(block)] if block.dtype.kind == "f" else block


def extremes(images: RawImages) -> Range:
    """Of all finite pixels; from NaN to NaN where there are none."""
    ends = [(float(pixels.min()), float(pixels.max())) for pixels in _finite(images) if pixels.size]
    return Range(min(low for low, _ in ends), max(high for _, high in ends)) if ends else Range(np.nan, np.nan)


def percentiles_of(images: RawImages, percentiles: tuple[float, float]) -> Range:
    """Two percentiles of all finite pixels, looked at here and there in large sets; NaN where there are none."""
    step, row = max(1, -(-images.size // LOOKED_AT)), math.prod(images.shape[1:])
    while math.gcd(step, row) > 1:  # else only some columns would be looked at
        step += 1
    seen = np.concatenate([np.ravel(pixels)[::step] for pixels in _finite(images)])
    low, high = np.percentile(seen, percentiles) if seen.size else (np.nan, np.nan)
    return Range(float(low), float(high))


def usual(images: RawImages) -> Range:
    """Of all finite pixels but :data:`RARE` percent at either end; NaN where there are none."""
    return percentiles_of(images, (RARE, 100 - RARE))


def has_outliers(everything: Range, most: Range) -> bool:
    """Whether few pixels reach so far that the others would use less than half of the shades."""
    return everything.width > 2 * most.width > 0


def intensity_window(images: RawImages) -> Range:
    """Intensities that become 0 and 255: 0 to 255 for 8 bits, 0 to 1 for floats within it, else the extremes, or what
    is usual where outliers would leave little for all others.
    """
    if images.dtype == np.uint8:
        return Range(0.0, 255.0)
    whole = extremes(images)
    if images.dtype.kind == "f" and whole.low >= 0 and whole.high <= 1:
        return Range(0.0, 1.0)
    most = usual(images)
    if has_outliers(whole, most):
        return most
    return whole if whole.width else Range(whole.low, whole.low + 1)
