"""Soft labels shifted by class, so that networks trained on them are not drawn towards a class.

Distilled images are not real ones, and a network trained on them may answer one class too often
for real images although its ranking of them is right. What such a network, trained as a recipient
would, says of real training images shows by how much. Source of the idea: bias-only calibration
of logits, Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; here the shift is not
sent along, it goes into the labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from medistill.data.preprocess import Part
from medistill.evaluation.arms import subset
from medistill.keys import Key
from medistill.types import Labels, Probabilities

IMAGES = 1024
"""Real training images a student is asked about, of each class equally many where there are as many."""

SMALLEST = 1e-9
"""Probabilities are not taken below, so that their logarithm stays finite."""

DAMPING = 1e-4
"""Weight of the squared shift; it keeps the shift finite where a class is never in doubt."""


def asked_images(train: Part, key: Key) -> Part:
    """Random real training images, equally many of each class as far as there are."""
    present = np.bincount(train.labels) > 0
    each = -(-IMAGES // int(present.sum()))
    return subset(train, [each] * len(present), key)


def class_shift(probabilities: Probabilities, labels: Labels) -> npt.NDArray[np.float64]:
    """What added to the logits makes every class as probable on average as any other; classes weigh equally.

    That is where cross entropy, averaged over classes, is least; as a function of the shift it is convex.

    Args:
        probabilities: of images, (n, classes).
        labels: their classes, (n,).

    Returns:
        (classes,), of mean zero; zero for classes that no image has.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    present = np.flatnonzero(counts)
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))[:, present]
    truth = labels[:, None] == present
    weights = 1.0 / (len(present) * counts[labels])

    def objective(shift: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        moved = logits + shift
        moved = moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)
        value = -(weights * moved[truth]).sum() + DAMPING * (shift**2).sum()
        return value, weights @ (np.exp(moved) - truth) + 2 * DAMPING * shift

    found = minimize(objective, np.zeros(len(present)), jac=True, method="BFGS").x
    result = np.zeros(len(counts))
    result[present] = found - found.mean()
    return result


def shifted(soft: npt.NDArray[np.float32], shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Soft labels (n, classes) with that added to their logits (classes,)."""
    moved = soft * np.exp(shift)
    return (moved / moved.sum(1, keepdims=True)).astype(np.float32)
