"""Bootstrap intervals over test images (or patients) and over repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medistill.aliases import Probabilities, Targets
from medistill.keys import Key
from medistill.package.results import Estimate
from medistill.tasks.task import Task

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
        task: whose metrics these are.
    """

    task: Task
    values: dict[str, Array]
    samples: dict[str, Array]
    picks: npt.NDArray[np.intp]

    @classmethod
    def of(cls, task: Task, runs: Sequence[Probabilities], targets: Targets, weights: Weights, key: Key) -> Bootstrap:
        """Measure an arm: probabilities of each run, targets, weights shared by all arms."""
        measured = [task.scores(p, targets) for p in runs]
        resampled = [task.evaluate(p, targets, weights) for p in runs]
        picks = key.numpy().integers(0, len(runs), size=(len(weights), len(runs)))
        return cls(
            task,
            {m: np.array([v[m] for v in measured]) for m in task.metric_names},
            {m: np.stack([v[m] for v in resampled]) for m in task.metric_names},
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

    def summary(self, metric: str) -> Estimate:
        """Mean and standard deviation over runs, 95 % interval over runs and test images.

        None where the test images do not define the metric (AUROC of a single class).
        """
        values = self.values[metric]
        return Estimate(
            mean=number(self.mean(metric)),
            std=number(float(values.std(ddof=1)) if len(values) > 1 else 0.0),
            ci95=interval(self.means(metric).clip(*self.task.metric(metric).bounds)),
        )

    def summaries(self) -> dict[str, Estimate]:
        """Every metric."""
        return {metric: self.summary(metric) for metric in self.task.metric_names}


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


def gain(first: Bootstrap, second: Bootstrap, metric: str) -> Estimate:
    """First minus second, paired: both are measured on the same drawn images."""
    return Estimate(
        mean=number(first.mean(metric) - second.mean(metric)),
        ci95=interval(first.means(metric) - second.means(metric)),
    )


def recovery(first: Bootstrap, full: Bootstrap, metric: str, baseline: float | None = None) -> Estimate:
    """(first − baseline) / (full − baseline), paired; None where full training is nothing above it, and for errors.

    Without a baseline it is first / full. Above a baseline full training must be surely, with its whole interval:
    else a share of hardly anything would be told.
    """
    whole = [full.mean(metric)] if baseline is None else interval(full.means(metric))
    baseline = baseline or 0.0
    # Not above also where one of both is NaN.
    if not first.task.metric(metric).higher_is_better or whole is None or not whole[0] > baseline:
        return Estimate(mean=None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (first.means(metric) - baseline) / (full.means(metric) - baseline)
    mean = (first.mean(metric) - baseline) / (full.mean(metric) - baseline)
    return Estimate(mean=number(mean), ci95=interval(ratio))


def share_interval(share: float, number: int) -> list[float]:
    """95 % interval of a share of so many independent cases: Wilson, "Probable Inference", JASA 1927."""
    from scipy.stats import binomtest

    found = binomtest(round(share * number), number).proportion_ci(method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]
