"""One class of several for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Probabilities, SoftLabels, Targets
from medistill.errors import DataError
from medistill.tasks.measures import Array, Ranking, calibration_error, mean_defined, over_runs
from medistill.tasks.task import Metric, Task, register_task

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-9
"""Probabilities are not taken below, so that their logarithm stays finite."""

DAMPING = 1e-4
"""Weight of the squared shift; it keeps the shift finite where a class is never in doubt."""

ACCURACY = Metric("accuracy", "accuracy", "accuracy")
BALANCED = Metric("balanced_accuracy", "balanced accuracy", "balanced")
AUROC = Metric("auroc", "AUROC (macro)", "AUROC")
F1 = Metric("f1_macro", "F1 (macro)", "F1")


@register_task
class MultiClass(Task):
    """Classes that exclude each other, in no order.

    Metrics are accuracy, balanced accuracy (mean recall over classes), the mean one-against-rest area under the ROC
    curve (ties count half; MedMNIST's definition) and mean F1, over the classes that the test images have.
    """

    kind: ClassVar[str] = "multi-class"
    title: ClassVar[str] = "multi-class task"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, BALANCED, AUROC, F1)
    primary: ClassVar[str] = "balanced_accuracy"

    def targets(self, labels: npt.NDArray[Any]) -> Targets:
        if labels.ndim == 2:
            odd = (labels.sum(axis=1) != 1) | ~np.isin(labels, (0, 1)).all(axis=1)
            if labels.shape[1] != self.outputs or odd.any():
                row = int(np.flatnonzero(odd)[0]) if odd.any() else 0
                raise DataError(f"[{row}] is {labels[row].tolist()}", allowed=f"one 1 of {self.outputs}, else 0")
            return labels.astype(np.uint8)
        wrong = (labels < 0) | (labels >= self.outputs)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"[{row}] is {labels[row]} ({int(wrong.sum())} images)",
                allowed=f"0 to {self.outputs - 1}, the classes that training has",
                remedy="correct the labels; they run from 0 to classes - 1 and occur in train",
            )
        return np.eye(self.outputs, dtype=np.uint8)[labels]

    def require(self, targets: Targets, where: str) -> None:
        wrong = targets.sum(axis=1) != 1
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"[{row}] has {int(targets[row].sum())} of {targets.shape[1]} ones", where=where,
                allowed="one class an image",
            )  # fmt: skip

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        from torch.nn import functional

        if targets.is_floating_point():
            return functional.cross_entropy(logits, targets)
        return functional.cross_entropy(logits, targets.argmax(1), label_smoothing=smoothing)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def logits(self, certainty: float, targets: Tensor) -> Tensor:
        import torch

        others = max(1, self.outputs - 1)
        return targets * torch.tensor(certainty * others / (1 - certainty)).log()

    def sharpened(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        # The largest becomes one, so that no power of all of them is zero.
        powers = (probabilities / probabilities.max(1, keepdims=True)) ** (1 / temperature)
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def shift(self, probabilities: Probabilities, targets: Targets) -> Array:
        """Where cross entropy, averaged over classes, is least; as a function of the shift it is convex.

        Every class is then as probable on average as any other; of mean zero, and zero for classes that no image has.
        """
        from scipy.optimize import minimize  # workers, which never shift, save its memory

        labels, counts = targets.argmax(axis=1), targets.sum(axis=0, dtype=np.int64)
        present = np.flatnonzero(counts)
        logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))[:, present]
        truth = labels[:, None] == present
        weights = 1.0 / (len(present) * counts[labels])

        def objective(shift: Array) -> tuple[float, Array]:
            moved = logits + shift
            moved = moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)
            value = -(weights * moved[truth]).sum() + DAMPING * (shift**2).sum()
            return value, weights @ (np.exp(moved) - truth) + 2 * DAMPING * shift

        solution = minimize(objective, np.zeros(len(present)), jac=True, method="BFGS").x
        result = np.zeros(len(counts))
        result[present] = solution - solution.mean()
        return result

    def shifted(self, soft: SoftLabels, shift: Array) -> SoftLabels:
        moved = soft * np.exp(shift)
        return np.asarray((moved / moved.sum(1, keepdims=True)).astype(np.float32))

    def restored(self, stored: npt.NDArray[np.float16]) -> SoftLabels:
        soft = stored.astype(np.float32)
        if not (soft >= 0).all() or not (np.abs(soft.sum(1) - 1) < 0.01).all():
            raise ValueError("soft labels that are no probabilities")
        # Storing in half precision may have taken something from the sum of one.
        return np.asarray((soft / soft.sum(1, keepdims=True)).astype(np.float32))

    def decisions(self, probabilities: Probabilities) -> Targets:
        return np.eye(self.outputs, dtype=np.uint8)[probabilities.argmax(axis=1)]

    def evaluate_block(self, probabilities: Probabilities, targets: Targets, weights: Array) -> dict[str, Array]:
        truth, answer = targets.astype(np.float64), self.decisions(probabilities).astype(np.float64)
        positives, hits, answers = weights @ truth, weights @ (truth * answer), weights @ answer
        present = positives > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = np.where(present, hits / positives, np.nan)
            f1 = np.where(present, 2 * hits / (positives + answers), np.nan)
        by_image = np.ascontiguousarray(weights.T)
        columns = zip(probabilities.T, targets.T > 0, strict=True)
        area = np.stack([Ranking(p, t, by_image).auroc() for p, t in columns], axis=1)
        return {
            "accuracy": hits.sum(axis=1) / weights.sum(axis=1),
            "balanced_accuracy": mean_defined(recall),
            "auroc": mean_defined(area),
            "f1_macro": mean_defined(f1),
        }

    def constant(self, targets: Targets, possible: npt.NDArray[np.bool_]) -> Array:
        return np.eye(self.outputs)[np.where(possible, targets.sum(axis=0, dtype=np.int64), -1).argmax()]

    def details(self, runs: Sequence[Probabilities], targets: Targets) -> Json:
        """Recall of each class; the calibration error is that of the largest probability."""
        truth, counts = targets.argmax(axis=1), targets.sum(axis=0, dtype=np.int64)
        confusion = np.zeros((self.outputs, self.outputs), dtype=int)
        errors = []
        for run in runs:
            predicted = run.argmax(axis=1)
            np.add.at(confusion, (truth, predicted), 1)
            errors.append(calibration_error(run.max(axis=1), predicted == truth))
        hits = confusion.diagonal()
        recall = [float(h / (len(runs) * n)) if n else None for h, n in zip(hits, counts, strict=True)]
        once = np.ones((len(targets), 1))
        areas = np.array(
            [[Ranking(p, t > 0, once).auroc()[0] for p, t in zip(run.T, targets.T, strict=True)] for run in runs]
        )
        return {
            "recall": recall,
            "by_class": {"auroc": over_runs(areas)},
            "confusion": confusion.tolist(),
            "calibration_error": float(np.mean(errors)),
        }
