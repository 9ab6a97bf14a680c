"""Tables of a study, from its database: numbers only, the same for the page, CSV, Parquet and LaTeX."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from medistill.aliases import Json
from medistill.package.results import ENOUGH
from medistill.records.records import RunRecord, current
from medistill.reporting.page import Column, Table

METRIC = "balanced_accuracy"
MATCHED = "random_matched"
RECOVERED = (ENOUGH, 0.95)
"""Shares of the full data's performance that count as reached."""


@dataclass(frozen=True)
class Cell:
    """The runs of one data set, method and size: one for each seed."""

    data: str
    group: str
    method: str
    ipc: int | None
    ratio: float | None
    runs: tuple[RunRecord, ...]

    @property
    def size(self) -> str:
        return self.runs[0].size

    @property
    def words(self) -> str:
        return self.runs[0].size_in_words

    @property
    def is_random(self) -> bool:
        return self.runs[0].is_random

    @property
    def recipe(self) -> str:
        """By what levels of cells can be compared."""
        return self.runs[0].recipe

    def works(self) -> bool:
        """Whether all images are surely better than guessing; else a share of what they reach says nothing."""
        return self.mean(lambda r: r["recovery_above_baseline"][METRIC]) is not None

    def mean(self, value: Callable[[Json], float | None]) -> float | None:
        """Mean over seeds of what ``value`` reads from a result; None where a seed lacks it."""
        values = [value(run.result or {}) for run in self.runs]
        defined = [v for v in values if v is not None]
        return fmean(defined) if len(defined) == len(values) else None

    def level(self, metric: str = METRIC, arm: str = "distilled") -> float | None:
        return self.mean(lambda r: r["arms"][arm][metric]["mean"] if arm in r["arms"] else None)

    def recovery(self, metric: str = METRIC) -> float | None:
        return self.mean(lambda r: r["recovery"][metric])

    def gain(self, over: str, part: int | None = None) -> float | None:
        """Gain over "random", or over random images with the same storage and soft labels: its mean over seeds, or
        the outermost end of their intervals.
        """
        name = "gain_over_random" if over == "random" else "gain_over_random_matched"

        def value(result: Json) -> float | None:
            figure = (result[name] or result["gain_over_random"])[METRIC]
            return figure["mean"] if part is None else (figure["ci95"] or (None, None))[part]

        return self.mean(value) if part is None else self._outermost(value, part)

    def recovery_interval(self) -> tuple[float, float] | None:
        """The outermost ends of the seeds' intervals; None where a seed has none."""
        low = self._outermost(lambda r: (r["recovery_ci95"][METRIC] or (None, None))[0], 0)
        high = self._outermost(lambda r: (r["recovery_ci95"][METRIC] or (None, None))[1], 1)
        return None if low is None or high is None else (low, high)

    def _outermost(self, value: Callable[[Json], float | None], part: int) -> float | None:
        """The lowest or highest over seeds: they share test images, so that their mean is hardly surer than one."""
        ends = [v for run in self.runs if (v := value(run.result or {})) is not None]
        return (min, max)[part](ends) if len(ends) == len(self.runs) else None

    def between_seeds(self) -> float | None:
        """Standard deviation of balanced accuracy between seeds of distilling."""
        values = [(run.result or {})["arms"]["distilled"][METRIC]["mean"] for run in self.runs]
        return stdev(values) if len(values) > 1 else None


def cells(runs: Iterable[RunRecord]) -> list[Cell]:
    """Runs that are done, gathered over seeds; of what is called the same, the newest configuration."""
    grouped: dict[tuple[Any, ...], list[RunRecord]] = defaultdict(list)
    for run in current(runs):
        if run.status == "done" and run.kind == "distilled":
            grouped[(run.data, run.group, run.method, run.ipc, run.ratio)].append(run)
    return [
        Cell(data, group, method, ipc, ratio, tuple(members))
        for (data, group, method, ipc, ratio), members in grouped.items()
    ]


def results(of: list[Cell]) -> Table:
    """Every cell with its levels, recovery, gains and cost."""
    columns = [
        Column("data"), Column("method"), Column("per class"), Column("seeds", "d"), Column("images", ".0f"),
        Column("share of images", ".2%"), Column("share of pixels", ".2%"),
        Column("balanced accuracy", ".3f"), Column("between seeds", ".3f"), Column("AUROC", ".3f"),
        Column("recovery", ".1%"), Column("recovery AUROC", ".1%"), Column("above chance", ".1%"),
        Column("gain over random", "+.3f"), Column("low", "+.3f"), Column("high", "+.3f"),
        Column("gain over random, same storage and labels", "+.3f"), Column("matched low", "+.3f"),
        Column("matched high", "+.3f"),
        Column("bytes", ",d"), Column("seconds", ".0f"), Column("MB", ".0f"),
    ]  # fmt: skip
    rows = [
        [
            c.data, c.method, c.size, len(c.runs), c.mean(lambda r: r["images"]["distilled"]),
            c.mean(lambda r: r["compression"]["stored_images"]), c.mean(lambda r: r["compression"]["images"]),
            c.level(), c.between_seeds(), c.level("auroc"), c.recovery(), c.recovery("auroc"),
            c.mean(lambda r: r["recovery_above_baseline"][METRIC]),
            c.gain("random"), c.gain("random", 0), c.gain("random", 1),
            c.gain(MATCHED), c.gain(MATCHED, 0), c.gain(MATCHED, 1),
            round(c.mean(lambda r: r["bytes"]) or 0), c.mean(lambda r: r["cost"]["seconds"]),
            c.mean(lambda r: r["cost"]["peak_memory_mb"]),
        ]
        for c in of
    ]  # fmt: skip
    note = (
        "Means over seeds of distilling; low and high are the outermost ends of the seeds' 95 % intervals. "
        "Images are those that networks train on; where they are stored smaller, several have the pixels of one. "
        "Same storage and labels: random images, as many, as small and labelled by the same teachers; where a "
        "package is plain, or its method learned the labels, these are the random images. Recovery is of balanced "
        "accuracy where nothing else is said."
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
        of_data = [c for c in of if c.data == data]
        curve = _random_curve(of_data)
        for c in of_data:
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
    features = result.get("features")
    classes = features["classes"] if features else max(1, round(result["images"]["random"] / (c.ipc or 1)))
    return float(result["images"][arm] / classes)


def _random_curve(of: list[Cell]) -> list[tuple[float, float]]:
    """Images per class and balanced accuracy of random images, made monotone; the last is all images."""
    points = {_per_class(c, arm): c.level(arm=arm) for arm in ("random", "full") for c in of}
    measured = sorted((size, level) for size, level in points.items() if level is not None)
    levels = np.maximum.accumulate(np.array([level for _, level in measured]))
    return [(size, float(level)) for (size, _), level in zip(measured, levels, strict=True)]


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


def sites(runs: Iterable[RunRecord]) -> Table:
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
        "all images reach above guessing; none where not even all images are surely better, and then recovery "
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
    recovered = [scores[name][METRIC] for name in ("recovery", "recovery_above_baseline")]
    return [*level, *recovered, gain["mean"], *(gain["ci95"] or (None, None))]


def pooled_table(runs: Iterable[RunRecord]) -> Table:
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
                figures = [
                    result["images"][arm],
                    by_metric[METRIC]["mean"],
                    gain["mean"],
                    *(gain["ci95"] or (None, None)),
                ]
                rows.append([run.data, site, run.method, run.size, run.seed, arm, *figures])
    return Table("pooled", "Several sites together", "", columns, rows)


def robustness_table(of: list[Cell]) -> Table:
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


def failures(runs: Iterable[RunRecord]) -> Table:
    """Runs that failed, and why."""
    columns = [Column("run"), Column("kind"), Column("error")]
    failed = [r for r in current(runs) if r.status == "failed"]
    rows: list[list[Any]] = [[r.title, r.kind, (r.error or "").strip().splitlines()[-1]] for r in failed]
    return Table("failures", "What failed", "", columns, rows)
