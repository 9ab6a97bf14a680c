"""How good the indicator is on data of origins it has not seen, beside trivial predictors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medistill.prediction.indicator import (
    QUANTITIES,
    VIEWS,
    Example,
    Values,
    View,
    half_width,
    left_out,
    nothing,
    predictions_without_two,
    scaled_errors,
)
from medistill.prediction.ranks import spearman

PREDICTORS: dict[str, tuple[View, ...]] = {
    "indicator": VIEWS,
    "random sample (the feasibility study's)": (VIEWS[0],),
    "number of classes": (View(lambda f: np.array([math.log(f["classes"])]), nothing),),
    "images per class": (View(lambda f: np.array([math.log(f["images"] / f["classes"])]), nothing),),
    "share of the largest class": (View(lambda f: np.array([f["majority"]]), nothing),),
    "mean of the others": (View(lambda f: np.zeros(1), nothing),),
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
    """

    predictor: str
    quantity: str
    examples: int
    mean_absolute_error: float
    r2: float
    spearman: float | None
    coverage: float


def assess(examples: Sequence[Example]) -> list[Assessment]:
    """Every predictor for every quantity."""
    found = []
    for name, views in PREDICTORS.items():
        predictions = left_out(examples, views)
        widths = _widths(examples, views)
        for quantity in QUANTITIES:
            measured = np.array([e.values[quantity] for e in examples])
            predicted = np.array([p[quantity] for p in predictions])
            spread = float(np.square(measured - measured.mean()).sum())
            found.append(
                Assessment(
                    name,
                    quantity,
                    len(examples),
                    float(np.abs(predicted - measured).mean()),
                    1 - float(np.square(predicted - measured).sum()) / spread if spread else 0.0,
                    spearman(predicted, measured),
                    _coverage(examples, scaled_errors(quantity, examples, predictions), widths[quantity]),
                )
            )
    return sorted(found, key=lambda a: QUANTITIES.index(a.quantity))


def _widths(examples: Sequence[Example], views: Sequence[View]) -> dict[str, dict[str, float]]:
    """For each quantity and group half the width of the interval that an indicator without that group would give."""
    found: dict[str, dict[str, float]] = {quantity: {} for quantity in QUANTITIES}
    apart = predictions_without_two(examples, views)
    for group in {e.group for e in examples}:
        others = [e for e in examples if e.group != group]
        predicted = [p for e, p in zip(examples, apart[group], strict=True) if e.group != group]
        for quantity in QUANTITIES:
            errors = scaled_errors(quantity, others, predicted)
            found[quantity][group] = half_width(errors, [e.group for e in others])
    return found


def _coverage(examples: Sequence[Example], errors: Values, widths: dict[str, float]) -> float:
    return float(np.mean([abs(error) <= widths[e.group] for e, error in zip(examples, errors, strict=True)]))
