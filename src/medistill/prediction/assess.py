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
        coverage: share of examples within an interval whose width comes from the other groups' errors.
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
                    _coverage(examples, scaled_errors(quantity, examples, predictions)),
                )
            )
    return sorted(found, key=lambda a: QUANTITIES.index(a.quantity))


def _coverage(examples: Sequence[Example], errors: Values) -> float:
    """How often a held-out origin lies within intervals that its own errors had no part in."""
    groups = np.array([e.group for e in examples])
    inside = []
    for group in np.unique(groups):
        others = groups != group
        inside.append(np.abs(errors[~others]) <= half_width(errors[others], groups[others].tolist()))
    return float(np.concatenate(inside).mean())
