"""Metrics as scikit-learn computes them, one set of predictions and weights at a time."""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
)


def of_classes(probabilities, labels, weights=None):
    """Of classes that exclude each other, all of which occur."""
    predicted = probabilities.argmax(1)
    area = [
        roc_auc_score(labels == c, probabilities[:, c], sample_weight=weights) for c in range(probabilities.shape[1])
    ]
    return {
        "accuracy": accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted, sample_weight=weights),
        "auroc": np.mean(area),
        "f1_macro": f1_score(labels, predicted, average="macro", sample_weight=weights),
    }


def of_grades(probabilities, labels, weights=None):
    """Of grades, all of which occur."""
    predicted = probabilities.argmax(1)
    return {
        **of_classes(probabilities, labels, weights),
        "quadratic_kappa": cohen_kappa_score(labels, predicted, weights="quadratic", sample_weight=weights),
        "mean_absolute_error": mean_absolute_error(labels, predicted, sample_weight=weights),
    }


def of_findings(probabilities, targets, weights=None):
    """Of findings, each of which some images have and others have not."""
    columns = list(zip(probabilities.T, targets.T, strict=True))
    each = {
        "balanced_accuracy": [balanced_accuracy_score(t, p >= 0.5, sample_weight=weights) for p, t in columns],
        "auroc": [roc_auc_score(t, p, sample_weight=weights) for p, t in columns],
        "average_precision": [average_precision_score(t, p, sample_weight=weights) for p, t in columns],
        "f1_macro": [f1_score(t, p >= 0.5, sample_weight=weights) for p, t in columns],
    }
    return {name: np.mean(values) for name, values in each.items()}
