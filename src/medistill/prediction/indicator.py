"""The indicator: what a method will reach on data, learned from what studies measured on other data.

A linear model predicts a metric's level on a scale where differences add up, the logit of what
lies above chance: what small networks reach on random images of the same number (the feasibility
study's own indicator), and what the method adds, which depends on what they reach on a coreset's few
images and on all, and on the number. Random images and all images count as methods too. Recovery and
gain follow from the levels, so that the four always agree. Intervals come from data of other origins:
each origin is left out in turn, and what the rest predict for it is compared with what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json
from medistill.errors import DataError

Values = npt.NDArray[np.float64]

QUANTITIES = ("balanced_accuracy", "auroc", "recovery", "gain")
"""Balanced accuracy and AUROC of networks trained on the package; balanced accuracy as a share of that with all
images, and minus that with random images of the same bytes."""

METRICS = ("balanced_accuracy", "auroc")

RANDOM, FULL = "random images", "all images"
"""What the arms that every run is compared with count as among the methods."""

CHOSEN_BY = {RANDOM: "random", FULL: "all"}
"""Which of the features' images an arm is."""

LEVEL = 0.95
"""Of the intervals."""

LEAST_GROUPS = 3


@dataclass(frozen=True)
class Example:
    """A measured run.

    Args:
        group: origin of the data; examples of one group are never on both sides of a split.
        data, method: names.
        distil: how the method was configured, as a study keeps it; what is predicted is predicted for the same.
        features: of the data and the method at the run's size, see :func:`medistill.prediction.features.features`.
        values: what was measured, by quantity.
        arms: balanced accuracy and AUROC of :data:`RANDOM` and of :data:`FULL`, by metric.
        task: what its labels mean.
        start: what the package's first images were.
    """

    group: str
    data: str
    method: str
    distil: Json
    features: dict[str, float]
    values: dict[str, float]
    arms: dict[str, dict[str, float]]
    task: str = "multi-class"
    start: str = "real"


@dataclass(frozen=True)
class Prediction:
    """An expected value and its 95 % interval."""

    mean: float
    low: float
    high: float


def above_chance(value: float, chance: float) -> float:
    """Logit of a value's share of the way from chance to one; the ends are cut off at 1 %."""
    share = min(0.99, max(0.01, (value - chance) / (1 - chance)))
    return math.log(share / (1 - share))


def from_above_chance(logit: float, chance: float) -> float:
    """The inverse of :func:`above_chance`.

    >>> round(from_above_chance(above_chance(0.8, 0.25), 0.25), 6)
    0.8
    """
    return chance + (1 - chance) / (1 + math.exp(-logit))


def _chance(metric: str, features: dict[str, float]) -> float:
    return 0.5 if metric == "auroc" else 1 / features["classes"]


@dataclass(frozen=True)
class View:
    """What a linear model sees of the features, on the scale of :func:`above_chance`.

    Args:
        describe: its columns for a metric.
        by_method: whether the effect of each differs between methods.
        from_random: it learns what to add to what small networks reached on random images; else the whole value.
    """

    describe: Callable[[str, dict[str, float]], Sequence[float]]
    by_method: bool = True
    from_random: bool = False

    def start(self, metric: str, features: dict[str, float]) -> float:
        """What is predicted before anything was learned."""
        return reached("random", metric, features) if self.from_random else 0.0


def features_for(method: str, features: dict[str, float]) -> dict[str, float]:
    """The features of a method; what random images and all images choose is known already."""
    if method not in CHOSEN_BY:
        return features
    kind = CHOSEN_BY[method]
    return features | {f"chosen.{metric}": features[f"{kind}.{metric}"] for metric in METRICS}


def reached(images: str, metric: str, features: dict[str, float]) -> float:
    """What small networks reached on "random" images, on "all", or on those "chosen" by a coreset."""
    return above_chance(features[f"{images}.{metric}"], _chance(metric, features))


def _gaps_and_size(metric: str, features: dict[str, float]) -> list[float]:
    """What chosen and what all images add to random ones, and the logarithm of the images per class."""
    random, chosen, full = (reached(images, metric, features) for images in ("random", "chosen", "all"))
    return [chosen - random, full - random, math.log(features["images"] / features["classes"])]


VIEW = View(_gaps_and_size, from_random=True)
"""A method reaches what random images of the number do, and shares of its own of what the few images that it chooses
and what all images add to that: some have labels from networks trained on all. And it may add more at some numbers
than at others.
"""


@dataclass(frozen=True)
class Model:
    """A linear model of one metric: Bayesian ridge regression on standardised features and the method.

    Source: MacKay, "Bayesian interpolation", Neural Computation 1992; as implemented by scikit-learn.
    """

    metric: str
    methods: tuple[str, ...]
    view: View
    mean: Values
    scale: Values
    weights: Values
    intercept: float

    @classmethod
    def fit(cls, metric: str, examples: Sequence[Example], view: View = VIEW) -> Model:
        """Learn from examples; every group counts as much as any other, however many runs it has."""
        from sklearn.linear_model import BayesianRidge

        levels = _levels(metric, examples)
        methods = tuple(sorted({method for _, method, _, _ in levels}))
        raw = np.array([view.describe(metric, features) for features, *_ in levels])
        mean, scale = raw.mean(axis=0), raw.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        rows, target = [], []
        for row, (features, method, level, _) in zip(raw, levels, strict=True):
            rows.append(_design(row, method, methods, mean, scale, view))
            target.append(above_chance(level, _chance(metric, features)) - view.start(metric, features))
        groups = [group for *_, group in levels]
        weight = np.array([1 / groups.count(group) for group in groups])
        fitted = BayesianRidge().fit(np.array(rows), target, sample_weight=weight * len(weight) / weight.sum())
        return cls(metric, methods, view, mean, scale, fitted.coef_, float(fitted.intercept_))

    def __call__(self, features: dict[str, float], method: str) -> float:
        """The expected level, as :func:`above_chance`. A method never seen counts as the mean of those that were."""
        used = features_for(method, features)
        row = _design(
            np.array(self.view.describe(self.metric, used)), method, self.methods, self.mean, self.scale, self.view
        )
        return float(row @ self.weights) + self.intercept + self.view.start(self.metric, used)


def _levels(metric: str, examples: Sequence[Example]) -> list[tuple[dict[str, float], str, float, str]]:
    """Features, method, level and group of all that was measured; what runs of one size share only once."""
    levels: dict[tuple[object, ...], tuple[dict[str, float], str, float, str]] = {}
    for index, e in enumerate(examples):
        levels[index,] = (e.features, e.method, e.values[metric], e.group)
        for arm in (RANDOM, FULL):
            of_arm = features_for(arm, e.features)
            levels[e.group, e.data, e.features["images"], arm] = (of_arm, arm, e.arms[arm][metric], e.group)
    return list(levels.values())


def _design(row: Values, method: str, methods: tuple[str, ...], mean: Values, scale: Values, view: View) -> Values:
    standard = (row - mean) / scale
    is_it = np.array([float(method == m) for m in methods])
    is_it = is_it - 1 / len(methods) if is_it.any() else is_it
    return np.concatenate([standard, is_it, *(is_it * value for value in standard if view.by_method)])


@dataclass(frozen=True)
class Models:
    """A model for each metric, and what follows from them."""

    of: dict[str, Model]

    @classmethod
    def fit(cls, examples: Sequence[Example], view: View = VIEW) -> Models:
        """Learn a model for each metric."""
        return cls({metric: Model.fit(metric, examples, view) for metric in METRICS})

    def level(self, metric: str, features: dict[str, float], method: str) -> float:
        """The expected level."""
        return from_above_chance(self.of[metric](features, method), _chance(metric, features))

    def __call__(self, features: dict[str, float], method: str) -> dict[str, float]:
        """The expected value of every quantity."""
        level = self.level("balanced_accuracy", features, method)
        return {
            "balanced_accuracy": level,
            "auroc": self.level("auroc", features, method),
            "recovery": level / self.level("balanced_accuracy", features, FULL),
            "gain": level - self.level("balanced_accuracy", features, RANDOM),
        }


@dataclass(frozen=True)
class Indicator:
    """The models with the errors they make on data of origins that they have not seen."""

    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        groups = {e.group for e in self.examples}
        if len(groups) < LEAST_GROUPS:
            raise DataError(
                f"holds data of {len(groups)} origins that an indicator could learn from",
                where="study's database",
                allowed=f"at least {LEAST_GROUPS}",
                remedy="run a study on more data sets",
            )

    @cached_property
    def models(self) -> Models:
        return Models.fit(self.examples)

    @cached_property
    def errors(self) -> dict[str, Values]:
        """Of models that never saw an example's group, on the scale of :func:`to_scale`."""
        predicted = left_out(self.examples)
        return {quantity: scaled_errors(quantity, self.examples, predicted) for quantity in QUANTITIES}

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that there is something known about."""
        return tuple(sorted(self.configurations))

    @property
    def tasks(self) -> set[str]:
        """Kinds of tasks that there is something known about."""
        return {e.task for e in self.examples}

    def started_from_real_images(self, method: str) -> bool:
        """Whether what is known about a method was measured with first images that were real ones."""
        return all(e.start == "real" for e in self.examples if e.method == method)

    @property
    def configurations(self) -> dict[str, Json]:
        """How each method was configured, as a study keeps it."""
        return {e.method: e.distil for e in self.examples}

    def predict(self, features: dict[str, float], method: str) -> dict[str, Prediction]:
        """What a method is expected to reach, by quantity."""
        predictions = {}
        for quantity, value in self.models(features, method).items():
            # A level beyond the ends that errors are measured between is the middle of its interval all the same.
            middle = self.models.of[quantity](features, method) if quantity in METRICS else value
            reach = half_width(self.errors[quantity], [e.group for e in self.examples])
            low, high = (from_scale(quantity, middle + d, features) for d in (-reach, reach))
            predictions[quantity] = Prediction(value, low, high)
        return predictions


def to_scale(quantity: str, value: float, features: dict[str, float]) -> float:
    """A value on the scale on which errors are alike everywhere: levels as logits, others as they are."""
    return value if quantity not in METRICS else above_chance(value, _chance(quantity, features))


def from_scale(quantity: str, value: float, features: dict[str, float]) -> float:
    """The inverse of :func:`to_scale`."""
    return value if quantity not in METRICS else from_above_chance(value, _chance(quantity, features))


def left_out(examples: Sequence[Example], view: View = VIEW) -> list[dict[str, float]]:
    """What models of the other groups predict for each example, by quantity."""
    predicted: list[dict[str, float]] = [{} for _ in examples]
    for group in {e.group for e in examples}:
        models = Models.fit([e for e in examples if e.group != group], view)
        for index, e in enumerate(examples):
            if e.group == group:
                predicted[index] = models(e.features, e.method)
    return predicted


def predictions_without_two(examples: Sequence[Example], view: View = VIEW) -> dict[str, list[dict[str, float]]]:
    """For each group and each example what models predict that saw neither that group nor the example's own."""
    groups = sorted({e.group for e in examples})
    predictions: dict[str, list[dict[str, float]]] = {group: [{} for _ in examples] for group in groups}
    for first, second in combinations(groups, 2):
        models = Models.fit([e for e in examples if e.group not in (first, second)], view)
        for index, e in enumerate(examples):
            for out, group in ((first, second), (second, first)):
                if e.group == group:
                    predictions[out][index] = models(e.features, e.method)
    return predictions


def scaled_errors(quantity: str, examples: Sequence[Example], predicted: Sequence[dict[str, float]]) -> Values:
    """Measured minus predicted, on the scale of :func:`to_scale`."""
    return np.array(
        [
            to_scale(quantity, e.values[quantity], e.features) - to_scale(quantity, p[quantity], e.features)
            for e, p in zip(examples, predicted, strict=True)
        ]
    )


def half_width(errors: Values, groups: Sequence[str]) -> float:
    """Half the width of an interval that holds 95 % of these errors, every origin counting as much as any other.

    It says where results on origins lay that the models had not seen. That is no guarantee for the next origin: there
    are few, and runs on one are alike.
    """
    origins = list(groups)
    weight = np.array([1 / origins.count(group) for group in origins]) / len(set(origins))
    order = np.argsort(np.abs(errors))
    place = int(np.searchsorted(np.cumsum(weight[order]), LEVEL - 1e-12))
    return float(np.abs(errors)[order][min(place, len(errors) - 1)])
