"""Tables of how well cheap scores predict what packages reach: representativeness after distilling, the indicator
before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.evaluation.jobs import CURVE_IMAGES
from medistill.keys import Key
from medistill.prediction.assess import INDICATOR, assess
from medistill.prediction.examples import examples_of, joined, learned_from
from medistill.prediction.indicator import LEAST_GROUPS, QUANTITIES
from medistill.prediction.ranks import partial_spearman, spearman, spearman_rows
from medistill.records.records import RunRecord
from medistill.reporting.page import Column, Table
from medistill.study.tables import METRIC, Cell

TRAINED = "trained networks on validation images"

NORMAL_95 = 1.959964
"""Standard deviations to either end of a normal distribution's 95 % interval."""

LEAST_PACKAGES = 5
"""Of a data set, to be ranked."""

REPEATS = 200
"""Draws of errors that a rank correlation is averaged over."""

Array = npt.NDArray[np.float64]


def representativeness_table(of: list[Cell]) -> Table:
    """How well each score ranks the packages of a data set, over methods and sizes, and within a size."""
    columns = [
        Column("data"), Column("score"), Column("packages", "d"), Column("Spearman", ".2f"),
        Column("reachable", ".2f"), Column("given the size", ".2f"), Column("low", ".2f"),
        Column("high", ".2f"),
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for data in dict.fromkeys(c.data for c in of):
        runs = [run.result or {} for c in of if c.data == data for run in c.runs]
        runs = [r for r in runs if r.get("representativeness")]
        if len(runs) < LEAST_PACKAGES:
            continue
        reached = [r["arms"]["distilled"][METRIC] for r in runs]
        level = np.array([figure["mean"] for figure in reached])
        error = np.array([figure["std"] / math.sqrt(r["repeats"]) for figure, r in zip(reached, runs, strict=True)])
        most = reachable(level, error)
        size = np.array([r["images"]["random"] for r in runs], dtype=float)
        by_run = [r["representativeness"] for r in runs]
        # Runs of an earlier version may have other scores.
        scores = {s: [of_run[s] for of_run in by_run] for s in by_run[-1] if all(s in of_run for of_run in by_run)}
        if all(r.get("validation") is not None for r in runs):
            scores[TRAINED] = [r["validation"] for r in runs]
        for score, series in scores.items():
            values = np.array(series)
            partial = partial_spearman(values, level, size)
            rows.append([data, score, len(runs), spearman(values, level), most, *partial])
    note = (
        "Rank correlation of each score with the measured balanced accuracy; reachable: that which the levels "
        "without the chance of the few networks they are means of would have, which no score can be expected to "
        "exceed (test images are chance too, but the same for all packages); given the size: the partial rank "
        "correlation with the number of images held fixed, with its 95 % bootstrap interval over packages. No "
        f"such score but what training tells: {TRAINED}, the mean of the primary metric that the very networks whose "
        f"level is ranked reached on at most {CURVE_IMAGES} of them."
    )
    return Table("representativeness", "Representativeness", note, columns, rows)


def reachable(level: Array, deviation: Array) -> float | None:
    """Mean rank correlation of true levels with measured ones, which differ from them by normal errors.

    What was measured spreads by the truth's variance and the errors'; it is shrunk to the truth's before errors are
    added.
    """
    spread = float(level.var(ddof=1))
    if spread == 0:
        return None
    truth = level.mean() + (level - level.mean()) * math.sqrt(max(0, 1 - np.square(deviation).mean() / spread))
    errors = Key(0).child("reachable").numpy().normal(0, 1, (REPEATS, len(level))) * deviation
    correlations = spearman_rows(np.broadcast_to(truth, errors.shape), truth + errors)
    defined = correlations[np.isfinite(correlations)]
    return float(defined.mean()) if len(defined) else None


def _deviation(interval: Sequence[float]) -> float:
    """Standard deviation of a normal error as wide as a 95 % interval says."""
    return (interval[1] - interval[0]) / (2 * NORMAL_95)


def indicator(runs: Iterable[RunRecord]) -> list[Table]:
    """How well the indicator predicts unseen origins, beside trivial predictors, and how well each of them."""
    columns = [
        Column("quantity"), Column("predictor"), Column("runs", "d"), Column("mean absolute error", ".3f"),
        Column("by chance", ".3f"), Column("R²", ".2f"), Column("Spearman", ".2f"), Column("covered", ".0%"),
    ]  # fmt: skip
    used, recipes = comparable(runs)
    examples = examples_of(used)
    of_origin = Counter(e.group for e in examples)
    rows: list[list[Any]] = []
    by_quantity: dict[str, dict[str, float]] = {}
    if len(of_origin) >= LEAST_GROUPS:
        chance = _by_chance(used)
        for a in assess(examples):
            measures = [a.examples, a.mean_absolute_error, chance[a.quantity], a.r2, a.spearman, a.coverage]
            rows.append([a.quantity.replace("_", " "), a.predictor, *measures])
            if a.predictor == INDICATOR:
                by_quantity[a.quantity] = a.by_origin
    note = (
        "Each origin of data left out in turn, predicted from the others. Every predictor knows the method; by "
        "chance: the error that the choice of test images, networks and random draws alone would leave, by the "
        "measured intervals; covered: share of results within the predicted 95 % interval. The last row is no "
        "predictor: it is told what random and all images reach on the test images, which others have to guess."
    )
    if recipes > 1:
        note += " Only runs evaluated by the commonest recipe count: levels of different recipes cannot be compared."
    origin_columns = [
        Column("origin"),
        Column("runs", "d"),
        *(Column(q.replace("_", " "), ".3f") for q in by_quantity),
    ]
    by_origin = [
        [group, n, *(errors[group] for errors in by_quantity.values())] for group, n in sorted(of_origin.items())
    ]
    explained = "The indicator's mean absolute error for data of each origin, predicted from the others."
    return [
        Table("indicator", "The indicator on unseen origins", note, columns, rows),
        Table("origins", "The indicator on each origin", explained, origin_columns, by_origin if by_quantity else []),
    ]


def comparable(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], int]:
    """The runs that an indicator learns from, of the commonest recipe, and the number of recipes."""
    candidates = joined(learned_from(runs))
    recipes = Counter(run.recipe for run in candidates)
    return [run for run in candidates if run.recipe == recipes.most_common(1)[0][0]], len(recipes)


def _by_chance(runs: list[RunRecord]) -> dict[str, float]:
    """Mean absolute deviation of a normal error as wide as the measured 95 % intervals say, by quantity."""
    deviations: dict[str, list[float]] = {quantity: [] for quantity in QUANTITIES}
    for run in runs:
        intervals = {
            "balanced_accuracy": run.interval("level", METRIC), "auroc": run.interval("level", "auroc"),
            "recovery": run.interval("recovery", METRIC), "gain": run.interval("gain", METRIC),
        }  # fmt: skip
        for quantity, interval in intervals.items():
            if interval is not None:
                deviations[quantity].append(_deviation(interval) * math.sqrt(2 / math.pi))
    return {quantity: fmean(values) if values else math.nan for quantity, values in deviations.items()}
