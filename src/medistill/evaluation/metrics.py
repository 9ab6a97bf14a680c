"""Metrics of predicted probabilities, also for many bootstrap samples at once.

A bootstrap sample is a row of weights: how often each test image was drawn. Weighted
metrics over all samples are then matrix products, exact and fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medistill.types import Json, Labels, Probabilities

Array = npt.NDArray[np.float64]

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1_macro")
"""The four that comparisons are made in; macro means over the classes that occur in the test data."""

CALIBRATION_BINS = 15

BLOCK = 2**22
"""Weights handled at once, so that a large test set needs no gigabytes."""


def weighted_metrics(
    probabilities: Probabilities, labels: Labels, weights: npt.NDArray[np.generic]
) -> dict[str, Array]:
    """The four metrics for every row of weights.

    Accuracy; mean recall over classes; mean one-against-rest area under the ROC curve
    (ties count half; MedMNIST's definition); mean F1. A class without weight in a row is
    left out of that row's means.

    Args:
        probabilities: (n, classes).
        labels: (n,).
        weights: (samples, n), non-negative.

    Returns:
        Each metric as (samples,).
    """
    rows = max(1, BLOCK // max(1, len(labels)))
    blocks = [_weighted(probabilities, labels, weights[i : i + rows]) for i in range(0, len(weights), rows)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in METRICS}


def _weighted(probabilities: Probabilities, labels: Labels, drawn: npt.NDArray[np.generic]) -> dict[str, Array]:
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    weights = drawn.astype(np.float64)
    truth = np.eye(classes)[labels]
    answer = np.eye(classes)[predicted]
    positives = weights @ truth
    hits = weights @ (truth * answer)
    answers = weights @ answer
    present = positives > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = np.where(present, hits / positives, np.nan)
        f1 = np.where(present, 2 * hits / (positives + answers), np.nan)
    area = np.stack([_auroc(probabilities[:, c], labels == c, weights) for c in range(classes)], axis=1)
    return {
        "accuracy": hits.sum(axis=1) / weights.sum(axis=1),
        "balanced_accuracy": _mean(recall),
        "auroc": _mean(area),
        "f1_macro": _mean(f1),
    }


def _mean(per_class: Array) -> Array:
    """Mean over the classes that are defined; NaN where none is."""
    defined = np.isfinite(per_class)
    count = defined.sum(axis=1)
    total = np.where(defined, per_class, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _auroc(scores: Array, positive: npt.NDArray[np.bool_], weights: Array) -> Array:
    """Weighted area under the ROC curve per row of weights; NaN where one side has no weight."""
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
    own = weights[:, positive]
    pairs = own.sum(axis=1) * negative[:, -1]
    return np.divide((own * beaten).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def metrics(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """The four metrics of one set of predictions."""
    values = weighted_metrics(probabilities, labels, np.ones((1, len(labels))))
    return {name: float(value[0]) for name, value in values.items()}


def details(runs: Sequence[Probabilities], labels: Labels) -> Json:
    """Per-class recall and calibration error as means over runs, confusion counts as their sum."""
    each = [_details(run, labels) for run in runs]
    recall = np.array([[np.nan if r is None else r for r in d["recall"]] for d in each])
    return {
        "recall": [None if np.isnan(column).all() else float(column.mean()) for column in recall.T],
        "confusion": np.sum([d["confusion"] for d in each], axis=0).tolist(),
        "calibration_error": float(np.mean([d["calibration_error"] for d in each])),
    }


def _details(probabilities: Probabilities, labels: Labels) -> Json:
    """Of one set of predictions.

    The expected calibration error is over 15 equal bins of the largest probability
    (Guo et al., ICML 2017).
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    count = confusion.sum(axis=1)
    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        members = bins == index
        error += members.mean() * abs((predicted == labels)[members].mean() - confidence[members].mean())
    return {
        "recall": [float(confusion[c, c] / count[c]) if count[c] else None for c in range(classes)],
        "confusion": confusion.tolist(),
        "calibration_error": float(error),
    }


def chance(train_labels: Labels, test_labels: Labels, classes: int) -> dict[str, float]:
    """What always answering the most frequent training class, of those tested, achieves; NaN where undefined."""
    answer = np.zeros((len(test_labels), classes))
    trained, tested = (np.bincount(labels, minlength=classes) for labels in (train_labels, test_labels))
    answer[:, np.where(tested > 0, trained, -1).argmax()] = 1
    return metrics(answer, test_labels)
