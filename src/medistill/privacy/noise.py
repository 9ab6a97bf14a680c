"""Noise that nobody can compute again.

The noise of a private release must not follow from anything that is published, as the seed of a package is, or
whoever knows it subtracts it. So it comes from the operating system's generator and is kept nowhere.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

SUMMED = 4
"""Draws that are added up for each number, so that the digits of one do not tell what it was added to (Holohan,
Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021)."""


def secret_normal(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Independent standard normal numbers from the operating system's generator."""
    from scipy.special import ndtri

    count = SUMMED * int(np.prod(shape))
    # 52 bits, so that the middle of each interval is a number of its own, and none is 0 or 1.
    whole = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(12)
    drawn = ndtri((whole.astype(np.float64) + 0.5) / 2.0**52)
    return np.asarray(drawn.reshape(SUMMED, *shape).sum(axis=0) / np.sqrt(SUMMED))
