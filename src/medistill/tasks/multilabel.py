"""Several findings may hold for one image, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Probabilities, SoftLabels, Targets
from medistill.errors import DataError
from medistill.tasks.measures import (
    Array,
    Ranking,
    calibration_error,
    mean_defined,
    over_runs,
    ratio,
)
from medistill.tasks.multiclass import AUROC, BALANCED, DAMPING, F1, SMALLEST
from medistill.tasks.task import Metric, Task, register_task

if TYPE_CHECKING:
    from torch import Tensor

AVERAGE_PRECISION = Metric("average_precision", "average precision (macro)", "AP")

NONE = "no finding"
"""The stratum of images for which nothing holds."""

THRESHOLD = 0.5
"""Probability from which on a finding is said to hold."""


@register_task
class MultiLabel(Task):
    """Findings that do not exclude each other, each a question of yes or no.

    Metrics are means over findings: the area under the ROC curve, average precision, F1, and balanced accuracy
    (mean of sensitivity and specificity) at a probability of one half. A finding that no test image has, or every
    one, is left out of means that it does not define. Strata are the images of each finding, which overlap, and
    those of none.
    """

    kind: ClassVar[str] = "multi-label"
    title: ClassVar[str] = "multi-label task"
    noun: ClassVar[str] = "finding"
    plural: ClassVar[str] = "findings"
    metrics: ClassVar[tuple[Metric, ...]] = (BALANCED, AUROC, AVERAGE_PRECISION, F1)
    primary: ClassVar[str] = "auroc"
    exclusive: ClassVar[bool] = False

    def targets(self, labels: npt.NDArray[Any]) -> Targets:
        if labels.ndim == 1:
            wrong = (labels < 0) | (labels >= self.outputs)
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise DataError(f"[{row}] is {labels[row]}", allowed=f"0 to {self.outputs - 1}")
            return np.eye(self.outputs, dtype=np.uint8)[labels]
        if labels.shape[1] != self.outputs:
            raise DataError(f"has shape {labels.shape}", allowed=f"one column for each of {self.outputs} findings")
        odd = ~np.isin(labels, (0, 1)).all(axis=1)
        if odd.any():
            row = int(np.flatnonzero(odd)[0])
            raise DataError(f"[{row}] is {labels[row].tolist()} ({int(odd.sum())} images)", allowed="zeros and ones")
        return labels.astype(np.uint8)

    @property
    def strata(self) -> tuple[str, ...]:
        return (*self.class_names, NONE)

    def membership(self, targets: Targets) -> npt.NDArray[np.bool_]:
        return np.column_stack([targets > 0, ~(targets > 0).any(axis=1)])

    def representatives(self) -> Targets:
        return np.eye(self.outputs + 1, self.outputs, dtype=np.uint8)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        from torch.nn import functional

        wanted = targets.to(logits.dtype)
        if not targets.is_floating_point():
            wanted = wanted * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, wanted)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def logits(self, certainty: float, targets: Tensor) -> Tensor:
        import torch

        return (2 * targets - 1) * torch.tensor(certainty / (1 - certainty)).log()

    def sharpened(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        largest = np.maximum(probabilities, 1 - probabilities)  # becomes one, so that not both powers are zero
        yes, no = ((p / largest) ** (1 / temperature) for p in (probabilities, 1 - probabilities))
        return np.asarray(yes / (yes + no))

    def shift(self, probabilities: Probabilities, targets: Targets) -> Array:
        """For each finding where cross entropy, images with and without it weighing alike, is least.

        Zero for findings that no image has, or every one.
        """
        from scipy.optimize import minimize  # workers, which never shift, save its memory

        clipped = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
        logits, truth = np.log(clipped / (1 - clipped)), targets.astype(np.float64)
        present = truth.sum(axis=0)
        defined = np.flatnonzero((present > 0) & (present < len(truth)))
        result = np.zeros(self.outputs)
        for column in defined:
            t, x = truth[:, column], logits[:, column]
            weights = np.where(t > 0, 0.5 / t.sum(), 0.5 / (1 - t).sum())

            def objective(shift: Array, t: Array = t, x: Array = x, weights: Array = weights) -> tuple[float, Array]:
                moved = x + shift[0]
                value = (weights * (np.logaddexp(0, moved) - t * moved)).sum() + DAMPING * shift[0] ** 2
                slope = (weights * (1 / (1 + np.exp(-moved)) - t)).sum() + 2 * DAMPING * shift[0]
                return float(value), np.array([slope])

            result[column] = minimize(objective, np.zeros(1), jac=True, method="BFGS").x[0]
        return result

    def shifted(self, soft: SoftLabels, shift: Array) -> SoftLabels:
        yes = soft * np.exp(shift)
        return np.asarray((yes / (yes + 1 - soft)).astype(np.float32))

    def restored(self, stored: npt.NDArray[np.float16]) -> SoftLabels:
        soft = stored.astype(np.float32)
        if not ((soft >= 0) & (soft <= 1)).all():
            raise ValueError("soft labels that are no probabilities")
        return soft

    def decisions(self, probabilities: Probabilities) -> Targets:
        return (probabilities >= THRESHOLD).astype(np.uint8)

    def evaluate_block(self, probabilities: Probabilities, targets: Targets, weights: Array) -> dict[str, Array]:
        by_class = self._by_class(probabilities, targets, weights)
        return {name: mean_defined(by_class[name]) for name in self.metric_names}

    def _by_class(self, probabilities: Probabilities, targets: Targets, weights: Array) -> dict[str, Array]:
        """Figures of each finding, (samples, outputs); NaN where not defined."""
        truth, answer = targets.astype(np.float64), self.decisions(probabilities).astype(np.float64)
        positives, answers, hits = weights @ truth, weights @ answer, weights @ (truth * answer)
        negatives = weights.sum(axis=1, keepdims=True) - positives
        rejected = negatives - (answers - hits)
        recall, specificity = ratio(hits, positives), ratio(rejected, negatives)
        by_image = np.ascontiguousarray(weights.T)
        rankings = [Ranking(p, t, by_image) for p, t in zip(probabilities.T, targets.T > 0, strict=True)]
        return {
            "recall": recall,
            "specificity": specificity,
            "balanced_accuracy": (recall + specificity) / 2,
            "f1_macro": np.where(positives > 0, ratio(2 * hits, positives + answers), np.nan),
            "auroc": np.stack([ranking.auroc() for ranking in rankings], axis=1),
            "average_precision": np.stack([ranking.average_precision() for ranking in rankings], axis=1),
        }

    def constant(self, targets: Targets, possible: npt.NDArray[np.bool_]) -> Array:
        """How often each finding holds in training: that no finding is the most frequent answer says nothing more."""
        return np.asarray(targets.mean(axis=0))

    def details(self, runs: Sequence[Probabilities], targets: Targets) -> Json:
        """Sensitivity, specificity, balanced accuracy, AUROC, average precision and F1 of each finding.

        The calibration error is that of all decisions on the findings that an image has; a site that does not look
        for a finding has none.
        """
        unit = np.ones((1, len(targets)))
        by_run = [self._by_class(run, targets, unit) for run in runs]
        by_class = {name: over_runs(np.concatenate([measures[name] for measures in by_run])) for name in by_run[0]}
        present = targets.any(axis=0)
        errors = [
            calibration_error(
                np.maximum(run, 1 - run)[:, present].ravel(), (self.decisions(run) == targets)[:, present].ravel()
            )
            for run in runs
        ]
        return {
            "recall": by_class.pop("recall"),
            "by_class": by_class,
            "confusion": None,
            "calibration_error": float(np.mean(errors)),
        }
