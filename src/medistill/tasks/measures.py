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


class Ranking:
    """Where the positives stand among all images by a score, for many bootstrap samples at once."""

    def __init__(self, scores: Array, positive: Flags, by_image: Array) -> None:
        """Sort once, whatever is asked.

        Args:
            scores: (n,).
            positive: (n,).
            by_image: (n, samples), how often each image counts; dense, so that rows are taken fast.
        """
        positives, negatives = (np.flatnonzero(side) for side in (positive, ~positive))
        positives = positives[np.argsort(scores[positives], kind="stable")]
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        high, low = scores[positives], scores[negatives]
        counted = np.zeros((len(negatives) + 1, by_image.shape[1]))
        np.cumsum(by_image[negatives], axis=0, out=counted[1:])
        self.weights, self.negatives = by_image[positives], counted[-1]
        self.below = counted[np.searchsorted(low, high, side="left")]
        """Weight of the negatives below each positive."""
        self.through = counted[np.searchsorted(low, high, side="right")]
        """Weight of the negatives below or at each positive."""
        self.first_tied = np.searchsorted(high, high, side="left")

    def auroc(self) -> Array:
        """Area under the ROC curve, (samples,), ties by half; NaN where one side has no weight."""
        beaten = (self.weights * (self.below + self.through)).sum(axis=0) / 2
        return ratio(beaten, self.weights.sum(axis=0) * self.negatives)

    def average_precision(self) -> Array:
        """Average precision, (samples,): the sum over thresholds of precision times the step in recall.

        As scikit-learn defines it, without interpolation; images of one score pass a threshold together. NaN where no
        positive has weight.
        """
        at_least = np.cumsum(self.weights[::-1], axis=0)[::-1][self.first_tied]
        passed = at_least + self.negatives - self.below
        precision = np.divide(at_least, passed, out=np.zeros_like(passed), where=passed > 0)
        return ratio((self.weights * precision).sum(axis=0), self.weights.sum(axis=0))


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
