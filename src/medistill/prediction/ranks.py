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
    return _finite(spearman_rows(first[None], second[None])[0])


def spearman_rows(first: Values, second: Values) -> Values:
    """Spearman's rank correlation of each row of (k, n) with the same row of another, (k,); NaN where undefined."""
    return _pearson(*(_centred(rankdata(values, axis=1)) for values in (first, second)))


def partial_spearman(
    first: Values, second: Values, given: Values, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Rank correlation with ``given`` held fixed, and its 95 % bootstrap interval over the points.

    Ranks of both are regressed on the ranks of ``given``; what is left is correlated. None where that is not
    defined.
    """
    estimate = _finite(_partial(first[None], second[None], given[None])[0])
    drawn = Key(seed).child("partial").numpy().integers(0, len(first), (SAMPLES, len(first)))
    correlations = _partial(first[drawn], second[drawn], given[drawn])
    defined = correlations[np.isfinite(correlations)]
    if estimate is None or 2 * len(defined) < SAMPLES:
        return estimate, None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return estimate, float(low), float(high)


def _partial(first: Values, second: Values, given: Values) -> Values:
    """All (k, n), row by row."""
    one, other, fixed = (_centred(rankdata(values, axis=1)) for values in (first, second, given))
    spread = np.square(fixed).sum(axis=1)
    left = []
    for ranks in (one, other):
        slope = np.divide((ranks * fixed).sum(axis=1), spread, out=np.zeros(len(spread)), where=spread > 0)
        left.append(ranks - slope[:, None] * fixed)
    return _pearson(*left)


def _centred(rows: Values) -> Values:
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))


def _pearson(first: Values, second: Values) -> Values:
    """Correlation of centred rows; NaN where one of both is constant."""
    norm = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    defined = norm > 1e-9 * first.shape[1]
    return np.divide((first * second).sum(axis=1), norm, out=np.full(len(norm), np.nan), where=defined)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
