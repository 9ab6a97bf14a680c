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


def bootstrap_weights(count: int, samples: int, key: Key, patients: npt.NDArray[np.str_] | None = None) -> Array:
    """How often each test image is drawn in each sample, (samples, count).

    Where patients are known whole patients are drawn, because their images stand or fall together.
    """
    rng = key.numpy()
    if patients is None:
        return rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    names, rows = np.unique(patients, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return drawn[:, rows].astype(np.float64)


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
    def of(cls, runs: Sequence[Probabilities], labels: Labels, weights: Array, key: Key) -> Bootstrap:
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
        """Mean over runs."""
        return float(self.values[metric].mean())

    def means(self, metric: str) -> Array:
        """Mean over drawn runs on drawn images, (samples,)."""
        columns = np.arange(len(self.picks))[:, None]
        return np.asarray(self.samples[metric][self.picks, columns].mean(axis=1))

    def summary(self, metric: str) -> Json:
        """Mean and standard deviation over runs, 95 % interval over runs and test images."""
        values = self.values[metric]
        return {
            "mean": self.mean(metric),
            "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            "ci95": interval(self.means(metric)),
        }


def interval(samples: Array) -> list[float]:
    """Central 95 % of bootstrap samples."""
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return [float(low), float(high)]


def gain(first: Bootstrap, second: Bootstrap, metric: str) -> Json:
    """First minus second, paired: both are measured on the same drawn images."""
    return {
        "mean": first.mean(metric) - second.mean(metric),
        "ci95": interval(first.means(metric) - second.means(metric)),
    }


def recovery(first: Bootstrap, full: Bootstrap, metric: str, chance: float = 0.0) -> Json:
    """(first − chance) / (full − chance), paired; None where full training is not above chance."""
    below = full.mean(metric) - chance
    if below <= 0:
        return {"mean": None, "ci95": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (first.means(metric) - chance) / (full.means(metric) - chance)
    return {"mean": (first.mean(metric) - chance) / below, "ci95": interval(ratio)}
