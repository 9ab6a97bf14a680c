"""Grades: classes that exclude each other and have an order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medistill.aliases import Probabilities, Targets
from medistill.tasks.measures import Array
from medistill.tasks.multiclass import ACCURACY, AUROC, BALANCED, F1, MultiClass
from medistill.tasks.task import Metric, register_task

if TYPE_CHECKING:
    from torch import Tensor

KAPPA = Metric("quadratic_kappa", "quadratic-weighted kappa", "kappa", (-1.0, 1.0))
SHARPNESS = 2.0
"""How fast a label falls off with the squared distance in grades; see docs/explanation/choosing-a-method.md."""

MAE = Metric("mean_absolute_error", "mean absolute error in grades", "MAE", (0.0, np.inf), higher_is_better=False)


@register_task
class Ordinal(MultiClass):
    """Grades from the least to the greatest.

    Beside the metrics of classes: quadratic-weighted kappa (Cohen, Psychological Bulletin 1968), agreement beyond
    chance where an error of two grades weighs four times one of one grade, and the mean absolute error in grades.
    """

    kind: ClassVar[str] = "ordinal"
    title: ClassVar[str] = "ordinal task"
    noun: ClassVar[str] = "grade"
    plural: ClassVar[str] = "grades"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, BALANCED, AUROC, F1, KAPPA, MAE)
    primary: ClassVar[str] = "balanced_accuracy"
    ordered: ClassVar[bool] = True

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross entropy over images. Where hard labels are smoothed, what they spread goes to near grades.

        A label is the softmax of −2 times the squared distance in grades, whatever the share that is asked for.
        Source: Diaz, Marathe, "Soft Labels for Ordinal Regression", CVPR 2019, equation 2.
        """
        if targets.is_floating_point() or not smoothing:
            return super().loss(logits, targets)
        import torch
        from torch.nn import functional

        grades = torch.arange(self.outputs, dtype=logits.dtype, device=logits.device)
        distance = (targets.argmax(1).to(logits.dtype)[:, None] - grades).square()
        return functional.cross_entropy(logits, (-SHARPNESS * distance).softmax(1))

    def evaluate_block(self, probabilities: Probabilities, targets: Targets, weights: Array) -> dict[str, Array]:
        truth, answer = targets.argmax(axis=1), probabilities.argmax(axis=1)
        total = weights.sum(axis=1)
        distance = (truth - answer).astype(np.float64)
        grades = np.arange(self.outputs)
        expected = np.square(grades[:, None] - grades).astype(np.float64)
        rows = weights @ targets.astype(np.float64)
        columns = weights @ self.decisions(probabilities).astype(np.float64)
        by_chance = np.einsum("si,ij,sj->s", rows, expected, columns) / total
        seen = weights @ np.square(distance)
        # With one grade on both sides there is nothing to agree on beyond chance.
        kappa = np.divide(seen, by_chance, out=np.full(len(seen), np.nan), where=by_chance > 0)
        return super().evaluate_block(probabilities, targets, weights) | {
            "quadratic_kappa": 1 - kappa,
            "mean_absolute_error": weights @ np.abs(distance) / total,
        }
