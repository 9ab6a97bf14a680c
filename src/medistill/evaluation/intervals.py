"""Bootstrap intervals over test images (or patients) and over repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medistill.evaluation.metrics import METRICS, metrics, weighted_metrics
from medistill.keys import Key
from medistill.types import Json, Labels, Probabilities

Array = npt.NDArray[np.float64]


Weights = npt.NDArray[np.uint16]


def bootstrap_weights(count: int, samples: int, key: Key, patients: npt.NDArray[np.str_] | None = None) -> Weights:
    """How often each test image is drawn in each sample, (samples, count).

    Where patients are known whole patients are drawn, because their images stand or fall together.
    """
    rng = key.numpy()
    names, rows = np.arange(count), np.arange(count)
    if patients is not None:
        names, rows = np.unique(patients, return_inverse=True)
    drawn = np.empty((samples, count), dtype=np.uint16)
    # Row by row, for all at once in 64 bits are gigabytes where many images are tested.
    for sample in drawn:
        sample[:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[rows]
    return drawn


@dataclass(frozen=True)
class Bootstrap:
    """One arm's runs, measured once and under every bootstrap sample.

    Args:
        values: metric → (runs,), on the test images as they are.
        samples: metric → (runs, samples).
        picks: which runs each sample draws, (samples, runs), with replacement.
    """

    values: dict[str, Array]
    samples: dict[str, Array]
    picks: npt.NDArray[np.intp]

    @classmethod
    def of(cls, runs: Sequence[Probabilities], labels: Labels, weights: Weights, key: Key) -> Bootstrap:
        """Measure an arm: probabilities of each run, true labels, weights shared by all arms."""
        measured = [metrics(p, labels) for p in runs]
        resampled = [weighted_metrics(p, labels, weights) for p in runs]
        picks = key.numpy().integers(0, len(runs), size=(len(weights), len(runs)))
        return cls(
            {m: np.array([v[m] for v in measured]) for m in METRICS},
            {m: np.stack([v[m] for v in resampled]) for m in METRICS},
            picks,
        )

    def mean(self, metric: str) -> float:
        """Mean over runs; NaN where the test images do not define the metric."""
        return float(self.values[metric].mean())

    def means(self, metric: str) -> Array:
        """Mean over drawn runs on drawn images, (samples,).

        Drawing n runs out of n with replacement gives means whose variance is (n − 1)/n of
        what it should be, which matters at three runs; their deviations are stretched by
        √(n/(n − 1)) (Davison, Hinkley, Bootstrap Methods and their Application, 1997, 2.7).
        """
        samples = self.samples[metric]
        runs = len(samples)
        drawn = samples[self.picks, np.arange(len(self.picks))[:, None]].mean(axis=1)
        if runs == 1:
            return np.asarray(drawn)
        centre = samples.mean(axis=0)
        return np.asarray(centre + (drawn - centre) * np.sqrt(runs / (runs - 1)))

    def summary(self, metric: str) -> Json:
        """Mean and standard deviation over runs, 95 % interval over runs and test images.

        None where the test images do not define the metric (AUROC of a single class).
        """
        values = self.values[metric]
        return {
            "mean": number(self.mean(metric)),
            "std": number(float(values.std(ddof=1)) if len(values) > 1 else 0.0),
            "ci95": interval(self.means(metric).clip(0, 1)),
        }


def number(value: float) -> float | None:
    """The value, or None where it is not a number: JSON knows no NaN."""
    return value if np.isfinite(value) else None


def interval(samples: Array) -> list[float] | None:
    """Central 95 % of bootstrap samples; None where fewer than half of them are numbers."""
    finite = samples[np.isfinite(samples)]
    if 2 * len(finite) < len(samples):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return [float(low), float(high)]


def gain(first: Bootstrap, second: Bootstrap, metric: str) -> Json:
    """First minus second, paired: both are measured on the same drawn images."""
    return {
        "mean": number(first.mean(metric) - second.mean(metric)),
        "ci95": interval(first.means(metric) - second.means(metric)),
    }


def recovery(first: Bootstrap, full: Bootstrap, metric: str, chance: float = 0.0) -> Json:
    """(first − chance) / (full − chance), paired; None where full training is nothing above chance.

    Above a chance that is not zero it must be surely, with its whole 95 % interval: else a share of hardly anything
    would be told.
    """
    whole = interval(full.means(metric)) if chance else [full.mean(metric)]
    if whole is None or not whole[0] > chance:  # also where one of both is NaN
        return {"mean": None, "ci95": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (first.means(metric) - chance) / (full.means(metric) - chance)
    return {"mean": number((first.mean(metric) - chance) / (full.mean(metric) - chance)), "ci95": interval(ratio)}
