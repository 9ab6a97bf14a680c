"""Weighted measures of scores and decisions, for many bootstrap samples at once.

A bootstrap sample is a row of weights: how often each image was drawn. Weighted measures over all samples are then
matrix products and cumulative sums, exact and fast.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CALIBRATION_BINS = 15


def ratio(above: Array, below: Array) -> Array:
    """Quotients; NaN where the divisor is zero."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def mean_defined(values: Array) -> Array:
    """Mean of each row of (samples, k) over the entries that are defined; NaN where none is."""
    defined = np.isfinite(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def auroc(scores: Array, positive: Flags, weights: Array) -> Array:
    """Area under the ROC curve for each row of weights, ties by half; NaN where one side has no weight.

    Args:
        scores: (n,).
        positive: (n,).
        weights: (samples, n).
    """
    if positive.all() or not positive.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], positive[order]
    # How much negative weight lies below each positive, ties by half.
    below = np.searchsorted(ranked, ranked[positive], side="left")
    through = np.searchsorted(ranked, ranked[positive], side="right")
    weights = weights[:, order]
    negative = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights * ~positive, axis=1)], axis=1)
    beaten = (negative[:, below] + negative[:, through]) / 2
    positive_weights = weights[:, positive]
    pairs = positive_weights.sum(axis=1) * negative[:, -1]
    return np.divide(
        (positive_weights * beaten).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0
    )


def average_precision(scores: Array, positive: Flags, weights: Array) -> Array:
    """Average precision for each row of weights: the sum over thresholds of precision times the step in recall.

    As scikit-learn defines it, without interpolation; images of one score pass a threshold together. NaN where no
    positive has weight.
    """
    if not positive.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    weights = weights[:, order]
    true_positives = np.cumsum(weights * positive, axis=1)[:, last]
    through = np.cumsum(weights, axis=1)[:, last]
    precision = np.divide(true_positives, through, out=np.zeros_like(true_positives), where=through > 0)
    steps = np.diff(true_positives, axis=1, prepend=0.0)
    return ratio((precision * steps).sum(axis=1), true_positives[:, -1])


def calibration_error(confidence: Array, right: Flags) -> float:
    """Expected calibration error over 15 equal bins (Guo et al., ICML 2017).

    Args:
        confidence: (n,) probability of what was decided.
        right: (n,) whether that was so.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        members = bins == index
        error += members.mean() * abs(right[members].mean() - confidence[members].mean())
    return float(error)


def over_runs(values: Array) -> list[float | None]:
    """Mean over runs of each column of (runs, k); None where it is defined in no run."""
    return [None if np.isnan(column).all() else float(np.nanmean(column)) for column in values.T]
