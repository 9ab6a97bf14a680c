"""Drawings of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medistill.package.results import ENOUGH
from medistill.prediction.assess import held_out_predictions
from medistill.prediction.examples import examples_of
from medistill.prediction.indicator import LEAST_GROUPS
from medistill.prediction.ranks import spearman
from medistill.prediction.representativeness import TOGETHER
from medistill.records.records import RunRecord
from medistill.reporting.figures import Clouds, svg_clouds, svg_lines
from medistill.reporting.html import Picture, picture_uri
from medistill.study.prediction_tables import LEAST_PACKAGES, comparable
from medistill.study.tables import METRIC, Cell

SCORE = f"{TOGETHER}.ridge_auroc"
"""The score of representativeness that is drawn; the table holds all."""


def pictures(of: Sequence[Cell], runs: Sequence[RunRecord]) -> list[tuple[str, Picture]]:
    """Recovery by size, and how well the indicator and a score of representativeness predict, each where known."""
    return [*_recovery(of), *_indicator(runs), *_representativeness(of)]


def _recovery(of: Sequence[Cell]) -> Iterator[tuple[str, Picture]]:
    """Recovery against images per class, a panel for each data set, a line for each method."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for c in sorted(of, key=lambda c: (c.data, c.method, c.ipc or 0)):
        recovered = c.recovery()
        if c.ipc is not None and recovered is not None:
            panels.setdefault(c.data, {}).setdefault(c.method, []).append((float(c.ipc), recovered))
    if not panels:
        return
    drawn = svg_lines(panels, "images per class", "share of full balanced accuracy", (ENOUGH,))
    told = "; ".join(
        f"{data}: " + ", ".join(f"{m} {p[-1][1]:.0%} at {p[-1][0]:.0f}" for m, p in by_method.items())
        for data, by_method in panels.items()
    )
    text = f"Line charts of recovery against images per class, one for each data set. At the largest size: {told}."
    caption = "Share of the full data's balanced accuracy, mean over seeds; dotted: 90 %."
    yield "Recovery by size", Picture(picture_uri(drawn, "svg+xml"), text, caption)


def _indicator(runs: Sequence[RunRecord]) -> Iterator[tuple[str, Picture]]:
    """What the indicator says of each package without its origin, against what was measured."""
    examples = examples_of(comparable(runs)[0])
    if len({e.group for e in examples}) < LEAST_GROUPS:
        return
    panels: Clouds = {}
    told = []
    for quantity, predicted in held_out_predictions(examples).items():
        title = quantity.replace("_", " ")
        for e, p in zip(examples, predicted, strict=True):
            point = (p.mean, e.values[quantity], p.low, p.high)
            panels.setdefault(title, {}).setdefault(e.group, []).append(point)
        error = sum(abs(p.mean - e.values[quantity]) for e, p in zip(examples, predicted, strict=True)) / len(
            examples
        )
        told.append(f"{title} {error:.3f}")
    drawn = svg_clouds(panels, "predicted", "measured", across=True, columns=2)
    errors = f"Mean absolute error: {', '.join(told)}."
    text = f"Scatter plots of predicted against measured values of {len(examples)} packages. {errors}"
    caption = f"Each origin predicted from the others, with the predicted 95 % interval. {errors} Dotted: equal."
    yield "The indicator on unseen origins", Picture(picture_uri(drawn, "svg+xml"), text, caption)


def _representativeness(of: Sequence[Cell]) -> Iterator[tuple[str, Picture]]:
    """A score that takes seconds against what networks reach, a panel for each data set."""
    panels: Clouds = {}
    for c in of:
        for result in (run.result or {} for run in c.runs):
            score, level = (result.get("representativeness") or {}).get(SCORE), result["arms"]["distilled"][METRIC]
            if score is not None:
                low, high = level["ci95"] or (level["mean"], level["mean"])
                panels.setdefault(c.data, {}).setdefault(c.method, []).append((score, level["mean"], low, high))
    panels = {data: kinds for data, kinds in panels.items() if sum(map(len, kinds.values())) >= LEAST_PACKAGES}
    if not panels:
        return
    told = []
    for data, kinds in panels.items():
        scores, levels = np.array([point[:2] for points in kinds.values() for point in points]).T
        rank = spearman(scores, levels)
        told.append(f"{data} {'not defined' if rank is None else f'{rank:.2f}'}")
    drawn = svg_clouds(panels, SCORE, "balanced accuracy")
    ranks = f"Spearman: {', '.join(told)}."
    text = f"Scatter plots of {SCORE} against balanced accuracy, one for each data set. {ranks}"
    caption = f"A point is a package; lines are the 95 % intervals of what was measured. {ranks}"
    yield "Representativeness and what networks reach", Picture(picture_uri(drawn, "svg+xml"), text, caption)
