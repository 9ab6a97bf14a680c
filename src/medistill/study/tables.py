"""Tables of a study, from its database: numbers only, the same for the page, CSV, Parquet and LaTeX."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.keys import Key
from medistill.prediction.assess import assess
from medistill.prediction.examples import examples_of, learned_from
from medistill.prediction.indicator import LEAST_GROUPS, QUANTITIES
from medistill.prediction.ranks import partial_spearman, spearman
from medistill.reporting.page import Column, Table
from medistill.store import Record, Store, current
from medistill.types import Json

METRIC = "balanced_accuracy"
ALIKE = "random_stored_alike"
NORMAL_95 = 1.959964
"""Standard deviations to either end of a normal distribution's 95 % interval."""

REPEATS = 200
"""Draws of errors that a rank correlation is averaged over."""

Array = npt.NDArray[np.float64]

RECOVERED = (0.90, 0.95)
"""Shares of the full data's performance that count as reached."""


@dataclass(frozen=True)
class Cell:
    """The runs of one data set, method and size: one for each seed."""

    data: str
    group: str
    method: str
    ipc: int | None
    ratio: float | None
    runs: tuple[Record, ...]

    @property
    def size(self) -> str:
        return self.runs[0].size

    @property
    def words(self) -> str:
        return self.runs[0].size_in_words

    @property
    def is_random(self) -> bool:
        return self.runs[0].is_random

    def mean(self, value: Callable[[Json], float | None]) -> float | None:
        """Mean over seeds of what ``value`` reads from a result; None where a seed lacks it."""
        values = [value(run.result or {}) for run in self.runs]
        known = [v for v in values if v is not None]
        return fmean(known) if len(known) == len(values) else None

    def level(self, metric: str = METRIC, arm: str = "distilled") -> float | None:
        return self.mean(lambda r: r["arms"][arm][metric]["mean"] if arm in r["arms"] else None)

    def recovery(self, metric: str = METRIC) -> float | None:
        return self.mean(lambda r: r["recovery"][metric])

    def gain(self, over: str, part: int | None = None) -> float | None:
        """Gain over "random" or random stored alike: its mean, or an end of its interval, averaged over seeds."""
        name = "gain_over_random" if over == "random" else "gain_over_random_stored_alike"

        def value(result: Json) -> float | None:
            found = (result[name] or result["gain_over_random"])[METRIC]
            return found["mean"] if part is None else (found["ci95"] or (None, None))[part]

        return self.mean(value)

    def between_seeds(self) -> float | None:
        """Standard deviation of balanced accuracy between seeds of distilling."""
        values = [(run.result or {})["arms"]["distilled"][METRIC]["mean"] for run in self.runs]
        return stdev(values) if len(values) > 1 else None


def cells(runs: Iterable[Record]) -> list[Cell]:
    """Runs that are done, gathered over seeds; of what is called the same, the newest configuration."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for run in current(runs):
        if run.status == "done" and run.kind == "distilled":
            found[(run.data, run.group, run.method, run.ipc, run.ratio)].append(run)
    return [
        Cell(data, group, method, ipc, ratio, tuple(each))
        for (data, group, method, ipc, ratio), each in found.items()
    ]


def results(of: list[Cell]) -> Table:
    """Every cell with its levels, recovery, gains and cost."""
    columns = [
        Column("data"), Column("method"), Column("per class"), Column("seeds", "d"), Column("share of images", ".2%"),
        Column("balanced accuracy", ".3f"), Column("between seeds", ".3f"), Column("AUROC", ".3f"),
        Column("recovery", ".1%"), Column("recovery AUROC", ".1%"), Column("above chance", ".1%"),
        Column("gain over random", "+.3f"), Column("low", "+.3f"), Column("high", "+.3f"),
        Column("gain over random stored alike", "+.3f"), Column("alike low", "+.3f"), Column("alike high", "+.3f"),
        Column("bytes", ",d"), Column("seconds", ".0f"), Column("MB", ".0f"),
    ]  # fmt: skip
    rows = [
        [
            c.data, c.method, c.size, len(c.runs), c.mean(lambda r: r["compression"]["images"]),
            c.level(), c.between_seeds(), c.level("auroc"), c.recovery(), c.recovery("auroc"),
            c.mean(lambda r: r["recovery_above_chance"][METRIC]),
            c.gain("random"), c.gain("random", 0), c.gain("random", 1),
            c.gain(ALIKE), c.gain(ALIKE, 0), c.gain(ALIKE, 1),
            round(c.mean(lambda r: r["bytes"]) or 0), c.mean(lambda r: r["cost"]["seconds"]),
            c.mean(lambda r: r["cost"]["peak_memory_mb"]),
        ]
        for c in of
    ]  # fmt: skip
    note = (
        "Means over seeds of distilling; low and high are the ends of the 95 % intervals, averaged over seeds. "
        "Stored alike: random images, as many, as small and with labels of the same kind; where a package is plain "
        "these are the random images. Recovery is of balanced accuracy where nothing else is said."
    )
    return Table("results", "Every result", note, columns, rows)


def boundary(of: list[Cell]) -> Table:
    """Recovery of each method at each size of each data set."""
    names = sorted({c.method for c in of})
    by_place = {(c.data, c.size, c.method): c.recovery() for c in of}
    places = list(dict.fromkeys((c.data, c.size) for c in of))
    rows = [[data, size, *(by_place.get((data, size, name)) for name in names)] for data, size in places]
    columns = [Column("data"), Column("per class"), *(Column(name, ".1%", marks=RECOVERED) for name in names)]
    note = "Share of the full data's balanced accuracy; marked where 90 % and where 95 % are reached."
    return Table("boundary", "Where it works", note, columns, rows)


def equivalents(of: list[Cell]) -> Table:
    """How many random images equal a distilled one, read off the random images' own learning curve."""
    columns = [
        Column("data"), Column("method"), Column("per class"), Column("balanced accuracy", ".3f"),
        Column("random images per class that reach it", ".1f"), Column("random images for one", ".1f"),
        Column("note"),
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for data in dict.fromkeys(c.data for c in of):
        own = [c for c in of if c.data == data]
        curve = _random_curve(own)
        for c in own:
            level = c.level()
            if not c.is_random and level is not None and len(curve) > 1:
                reached, note = _inverse(curve, level)
                rows.append([data, c.method, c.size, level, reached, reached / _per_class(c, "random"), note])
    note = (
        "Interpolated between the sizes at which random images were measured, linear in the logarithm of their "
        "number; the largest is all training images, taken as their mean number per class."
    )
    return Table("equivalents", "How many random images equal a distilled one", note, columns, rows)


def _per_class(c: Cell, arm: str) -> float:
    """Mean number of images per class that an arm trains on; of random ones, those of a package's bytes."""
    result = c.runs[0].result or {}
    known = result.get("features")
    classes = known["classes"] if known else max(1, round(result["images"]["random"] / (c.ipc or 1)))
    return float(result["images"][arm] / classes)


def _random_curve(of: list[Cell]) -> list[tuple[float, float]]:
    """Images per class and balanced accuracy of random images, made monotone; the last is all images."""
    points = {_per_class(c, arm): c.level(arm=arm) for arm in ("random", "full") for c in of}
    known = sorted((size, level) for size, level in points.items() if level is not None)
    levels = np.maximum.accumulate(np.array([level for _, level in known]))
    return [(size, float(level)) for (size, _), level in zip(known, levels, strict=True)]


def _inverse(curve: list[tuple[float, float]], level: float) -> tuple[float, str]:
    sizes, levels = np.log([size for size, _ in curve]), np.array([value for _, value in curve])
    if level <= levels[0]:
        return float(np.exp(sizes[0])), "at most"
    if level >= levels[-1]:
        return float(np.exp(sizes[-1])), "at least"
    above = int(np.argmax(levels >= level))
    share = (level - levels[above - 1]) / (levels[above] - levels[above - 1])
    return float(np.exp(sizes[above - 1] + share * (sizes[above] - sizes[above - 1]))), ""


def networks(of: list[Cell]) -> Table:
    """Other networks trained on the same packages."""
    columns = [
        Column("data"), Column("method"), Column("per class"), Column("network"), *COMPARED,
    ]  # fmt: skip
    rows = []
    for c in of:
        result = c.runs[0].result or {}
        for net, scores in result["transfer"].items():
            rows.append([c.data, c.method, c.size, net, *_compared(scores)])
    return Table("networks", "Other networks", "The first seed's packages. Balanced accuracy.", columns, rows)


def sites(runs: Iterable[Record]) -> Table:
    """Networks asked about another site's images."""
    columns = [
        Column("trained on"), Column("tested on"), Column("method"), Column("per class"), Column("seed", "d"),
        *COMPARED,
    ]  # fmt: skip
    rows = [
        [run.data, run.site, run.method, run.size, run.seed, *_compared(scores)]
        for run in current(runs)
        if run.status == "done" and run.kind == "transfer"
        for scores in (run.result or {})["sites"].values()
    ]
    note = (
        "Trained on one hospital's images, tested on another's. Balanced accuracy. Above chance: the share of what "
        "all images reach above guessing; none where not even all images are better than guessing, and then recovery "
        "says nothing."
    )
    return Table("sites", "Another site", note, columns, rows)


COMPARED = (
    Column("distilled", ".3f"), Column("random", ".3f"), Column("all images", ".3f"), Column("recovery", ".1%"),
    Column("above chance", ".1%"), Column("gain over random", "+.3f"), Column("low", "+.3f"), Column("high", "+.3f"),
)  # fmt: skip
"""What :func:`_compared` gives."""


def _compared(scores: Json) -> list[float | None]:
    level = [scores["arms"][arm][METRIC]["mean"] for arm in ("distilled", "random", "full")]
    gain = scores["gain_over_random"][METRIC]
    recovered = [scores[name][METRIC] for name in ("recovery", "recovery_above_chance")]
    return [*level, *recovered, gain["mean"], *(gain["ci95"] or (None, None))]


def pooled(runs: Iterable[Record]) -> Table:
    """Packages of several sites together, beside each alone."""
    columns = [
        Column("data"), Column("tested on"), Column("method"), Column("per class"), Column("seed", "d"),
        Column("trained on"), Column("images", "d"), Column("balanced accuracy", ".3f"),
        Column("pooled is better by", "+.3f"), Column("low", "+.3f"), Column("high", "+.3f"),
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for run in current(runs):
        result = run.result or {}
        if run.status != "done" or run.kind != "pooled":
            continue
        for site, scores in result["sites"].items():
            for arm, by_metric in scores["arms"].items():
                gain = scores["gain_over"].get(arm, {METRIC: {"mean": None, "ci95": None}})[METRIC]
                found = [
                    result["images"][arm],
                    by_metric[METRIC]["mean"],
                    gain["mean"],
                    *(gain["ci95"] or (None, None)),
                ]
                rows.append([run.data, site, run.method, run.size, run.seed, arm, *found])
    return Table("pooled", "Several sites together", "", columns, rows)


def robustness(of: list[Cell]) -> Table:
    """DD-Ranking's scores."""
    names = ("label_robust_score", "augmentation_robust_score", "hard_label_recovery", "improvement_over_random")
    columns = [
        Column("data"),
        Column("method"),
        Column("per class"),
        *(Column(n.replace("_", " "), ".3f") for n in names),
    ]
    rows = [
        [c.data, c.method, c.size, *(c.mean(lambda r, n=n: r["robustness"][n]) for n in names)]  # type: ignore[misc]
        for c in of
        if all((run.result or {}).get("robustness") for run in c.runs)
    ]
    note = "Accuracies as fractions; hard label recovery is what is missing to full training, so less is better."
    return Table("robustness", "DD-Ranking scores", note, columns, rows)


def representativeness(of: list[Cell]) -> Table:
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
        if len(runs) < 5:
            continue
        reached = [r["arms"]["distilled"][METRIC] for r in runs]
        level = np.array([each["mean"] for each in reached])
        intervals = [each["ci95"] for each in reached]
        known = None not in intervals
        most = _measured_again(level, np.array([_deviation(i) for i in intervals])) if known else None
        size = np.array([r["images"]["random"] for r in runs], dtype=float)
        for score in runs[0]["representativeness"]:
            values = np.array([r["representativeness"][score] for r in runs])
            partial = partial_spearman(values, level, size)
            rows.append([data, score, len(runs), spearman(values, level), most, *partial])
    note = (
        "Rank correlation of each score with the measured balanced accuracy; reachable: that of the levels with what "
        "measuring the same packages again, on other test images with other networks, would give by their intervals, "
        "which no score can be expected to exceed; given the size: the partial rank "
        "correlation with the number of images held fixed, with its 95 % bootstrap interval over packages."
    )
    return Table("representativeness", "Representativeness", note, columns, rows)


def _measured_again(level: Array, deviation: Array) -> float | None:
    """Mean rank correlation of levels with levels that differ from them by normal errors."""
    errors = Key(0).child("measured again").numpy().normal(0, 1, (REPEATS, len(level))) * deviation
    found = [spearman(level, level + error) for error in errors]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def _deviation(interval: Sequence[float]) -> float:
    """Standard deviation of a normal error as wide as a 95 % interval says."""
    return (interval[1] - interval[0]) / (2 * NORMAL_95)


def indicator(runs: Iterable[Record]) -> Table:
    """How well the indicator foretells data of origins it has not seen, beside trivial predictors."""
    columns = [
        Column("quantity"), Column("predictor"), Column("runs", "d"), Column("mean absolute error", ".3f"),
        Column("by chance", ".3f"), Column("R²", ".2f"), Column("Spearman", ".2f"), Column("covered", ".0%"),
    ]  # fmt: skip
    known = list(runs)
    examples = examples_of(known)
    rows: list[list[Any]] = []
    if len({e.group for e in examples}) >= LEAST_GROUPS:
        chance = _by_chance(learned_from(known))
        for a in assess(examples):
            found = [a.examples, a.mean_absolute_error, chance[a.quantity], a.r2, a.spearman, a.coverage]
            rows.append([a.quantity.replace("_", " "), a.predictor, *found])
    note = (
        "Each origin of data left out in turn, predicted from the others. Every predictor knows the method; by "
        "chance: the error that the choice of test images, networks and random draws alone would leave, by the "
        "measured intervals; covered: share of results within the predicted 95 % interval."
    )
    return Table("indicator", "The indicator on unseen origins", note, columns, rows)


def _by_chance(runs: list[Record]) -> dict[str, float]:
    """Mean absolute deviation of a normal error as wide as the measured 95 % intervals say, by quantity."""
    found: dict[str, list[float]] = {quantity: [] for quantity in QUANTITIES}
    for run in runs:
        result = run.result or {}
        level = result["arms"]["distilled"]
        intervals = {
            "balanced_accuracy": level[METRIC]["ci95"], "auroc": level["auroc"]["ci95"],
            "recovery": result["recovery_ci95"][METRIC], "gain": result["gain_over_random"][METRIC]["ci95"],
        }  # fmt: skip
        for quantity, interval in intervals.items():
            if interval is not None:
                found[quantity].append(_deviation(interval) * math.sqrt(2 / math.pi))
    return {quantity: fmean(values) if values else math.nan for quantity, values in found.items()}


def failures(runs: Iterable[Record]) -> Table:
    """Runs that failed, and why."""
    columns = [Column("run"), Column("kind"), Column("error")]
    failed = [r for r in current(runs) if r.status == "failed"]
    rows: list[list[Any]] = [[r.title, r.kind, (r.error or "").strip().splitlines()[-1]] for r in failed]
    return Table("failures", "What failed", "", columns, rows)


TABLES = (
    "boundary", "results", "equivalents", "networks", "sites", "pooled", "robustness", "representativeness",
    "indicator", "failures",
)  # fmt: skip
"""Keys of all that there may be."""


def all_tables(store: Store) -> list[Table]:
    """Every table that has rows."""
    runs = store.runs()
    of = cells(runs)
    made = [
        boundary(of), results(of), equivalents(of), networks(of), sites(runs), pooled(runs), robustness(of),
        representativeness(of), indicator(runs), failures(runs),
    ]  # fmt: skip
    return [table for table in made if table.rows]
