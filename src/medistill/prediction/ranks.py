"""Rank correlations, plain and with a third quantity held fixed, with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from medistill.keys import Key

Values = npt.NDArray[np.float64]

SAMPLES = 1000


def spearman(first: Values, second: Values) -> float | None:
    """Spearman's rank correlation; None where one of both is constant."""
    return _pearson(rankdata(first), rankdata(second))


def partial_spearman(
    first: Values, second: Values, given: Values, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Rank correlation with ``given`` held fixed, and its 95 % bootstrap interval over the points.

    Ranks of both are regressed on the ranks of ``given``; what is left is correlated. None where that is not
    defined.
    """
    estimate = _partial(first, second, given)
    rng = Key(seed).child("partial").numpy()
    drawn = [_partial(first[i], second[i], given[i]) for i in rng.integers(0, len(first), (SAMPLES, len(first)))]
    known = [value for value in drawn if value is not None]
    if estimate is None or 2 * len(known) < SAMPLES:
        return estimate, None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return estimate, float(low), float(high)


def _partial(first: Values, second: Values, given: Values) -> float | None:
    ranks = [rankdata(values) for values in (first, second, given)]
    design = np.column_stack([np.ones(len(first)), ranks[2]])
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    return _pearson(*left)


def _pearson(first: Values, second: Values) -> float | None:
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b / norm) if norm > 1e-9 * len(first) else None
