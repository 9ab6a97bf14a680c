"""How good the indicator is on data of origins it has not seen, beside trivial predictors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medistill.prediction.indicator import (
    CHOSEN_BY,
    METRICS,
    QUANTITIES,
    VIEW,
    Example,
    Prediction,
    Values,
    View,
    from_scale,
    half_width,
    left_out,
    predictions_without_two,
    reached,
    scaled_errors,
    to_scale,
)
from medistill.prediction.ranks import spearman

INDICATOR = "indicator"

INFORMED = "indicator told what random and all images reach"
"""No predictor, for that is what small networks are trained to guess: how well the same model would do without what
they get wrong about the data.
"""

PREDICTORS: dict[str, View] = {
    INDICATOR: VIEW,
    "random sample (the feasibility study's)": View(lambda _, f: [reached("random", m, f) for m in METRICS]),
    "number of classes": View(lambda _, f: [math.log(f["classes"])]),
    "images per class": View(lambda _, f: [math.log(f["images"] / f["classes"])]),
    "share of the largest class": View(lambda _, f: [f["majority"]]),
    "mean of the others": View(lambda *_: [0.0]),
}
"""What the models of each predictor may see beside the method."""


@dataclass(frozen=True)
class Assessment:
    """One predictor's error for one quantity, each origin left out in turn.

    Args:
        mean_absolute_error: in the quantity's own unit.
        r2: share of the variance explained; negative where the mean would be better.
        spearman: rank correlation of predicted and measured values; None where one is constant.
        coverage: share of examples within an interval that their group had no part in, neither in what is predicted
            nor in its width.
        by_origin: the mean absolute error for each origin.
    """

    predictor: str
    quantity: str
    examples: int
    mean_absolute_error: float
    r2: float
    spearman: float | None
    coverage: float
    by_origin: dict[str, float]


def assess(examples: Sequence[Example]) -> list[Assessment]:
    """Every predictor for every quantity."""
    assessments = []
    groups = np.array([e.group for e in examples])
    informed = [_informed(e) for e in examples]
    for name, view, basis in (*((n, v, examples) for n, v in PREDICTORS.items()), (INFORMED, VIEW, informed)):
        predictions = left_out(basis, view)
        widths = _widths(basis, view)
        for quantity in QUANTITIES:
            measured = np.array([e.values[quantity] for e in examples])
            predicted = np.array([p[quantity] for p in predictions])
            errors = np.abs(predicted - measured)
            spread = float(np.square(measured - measured.mean()).sum())
            assessments.append(
                Assessment(
                    name,
                    quantity,
                    len(examples),
                    float(errors.mean()),
                    1 - float(np.square(predicted - measured).sum()) / spread if spread else 0.0,
                    spearman(predicted, measured),
                    _coverage(examples, scaled_errors(quantity, examples, predictions), widths[quantity]),
                    {str(group): float(errors[groups == group].mean()) for group in np.unique(groups)},
                )
            )
    return sorted(assessments, key=lambda a: QUANTITIES.index(a.quantity))


def held_out_predictions(examples: Sequence[Example]) -> dict[str, list[Prediction]]:
    """By quantity what the indicator says of each example, with its interval, having never seen its origin."""
    widths = _widths(examples, VIEW)
    by_quantity: dict[str, list[Prediction]] = {quantity: [] for quantity in QUANTITIES}
    for e, values in zip(examples, left_out(examples), strict=True):
        for quantity, value in values.items():
            middle, reach = to_scale(quantity, value, e.features), widths[quantity][e.group]
            low, high = (from_scale(quantity, middle + d, e.features) for d in (-reach, reach))
            by_quantity[quantity].append(Prediction(value, low, high))
    return by_quantity


def _informed(example: Example) -> Example:
    """The example with what was measured on test images in place of what small networks reached on held out ones."""
    arms = {CHOSEN_BY[arm]: reached for arm, reached in example.arms.items()}
    measured = {f"{kind}.{metric}": levels[metric] for kind, levels in arms.items() for metric in METRICS}
    return replace(example, features=example.features | measured)


def _widths(examples: Sequence[Example], view: View) -> dict[str, dict[str, float]]:
    """For each quantity and group half the width of the interval that an indicator without that group would give."""
    widths: dict[str, dict[str, float]] = {quantity: {} for quantity in QUANTITIES}
    apart = predictions_without_two(examples, view)
    for group in {e.group for e in examples}:
        others = [e for e in examples if e.group != group]
        predicted = [p for e, p in zip(examples, apart[group], strict=True) if e.group != group]
        for quantity in QUANTITIES:
            errors = scaled_errors(quantity, others, predicted)
            widths[quantity][group] = half_width(errors, [e.group for e in others])
    return widths


def _coverage(examples: Sequence[Example], errors: Values, widths: dict[str, float]) -> float:
    return float(np.mean([abs(error) <= widths[e.group] for e, error in zip(examples, errors, strict=True)]))
