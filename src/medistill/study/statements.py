"""Guidelines in words, each sentence made from figures and bound to the table they stand in."""

from __future__ import annotations

from statistics import fmean

from medistill.aliases import Json
from medistill.formatting import listed
from medistill.package.results import ENOUGH
from medistill.records.records import RunRecord, current
from medistill.reporting.page import Statement
from medistill.study.tables import MATCHED, Cell

CHOSEN = (
    "The best of several methods is named by the figures told, so on other images it would do a little less well."
)
"""What a reader of sentences about the best should know."""

LEAST, FEW = 0.01, 0.05
"""Shares of the training images that packages are meant for."""


def statements(of: list[Cell], runs: list[RunRecord]) -> list[Statement]:
    """Every sentence that the figures at hand allow; none where there are no figures."""
    return [*_where(of), *_few(of), *_which(of), *_worth(of), *_sites(runs), *_pooled(runs)]


def _share(c: Cell) -> float:
    """Of the original's pixels, which is what is sent; images stored smaller are more than that of the number."""
    return c.mean(lambda r: r["compression"]["images"]) or 0.0


def _stored(c: Cell) -> float:
    """Of the original's number of images, however small they are."""
    return c.mean(lambda r: r["compression"]["stored_images"]) or 0.0


def _size(c: Cell) -> str:
    """How much of the data a package is, so that nobody takes smaller images for fewer ones."""
    if _stored(c) <= _share(c):
        return f"{c.words}, {_share(c):.2%} of their number"
    images = c.mean(lambda r: r["images"]["distilled"]) or 0.0
    number = f"{images:.0f} smaller images, {_stored(c):.2%} of their number"
    return f"the pixels of {c.words}, {_share(c):.2%} of all; {number}"


def _where(of: list[Cell]) -> list[Statement]:
    """For each data set the smallest package that does, else the best; of one size the best."""
    made = []
    for data in dict.fromkeys(c.data for c in of):
        small = [c for c in of if c.data == data and _share(c) <= FEW and c.recovery() is not None and c.works()]
        ranked = sorted((c for c in small if not c.is_random), key=lambda c: (_share(c), -(c.recovery() or 0)))
        methods = list(dict.fromkeys(c.method for c in ranked))
        enough = [c for c in ranked if (c.recovery() or 0) >= ENOUGH]
        if enough:
            made.append(f"{data}: {_reached(enough[0])}.")
        elif len(methods) > 1:  # one method alone says little of what can be had
            best = max(ranked, key=lambda c: c.recovery() or 0)
            made.append(
                f"{data}: none of {listed(methods)} reached {ENOUGH:.0%} of the full data's balanced accuracy with "
                f"at most {FEW:.0%} of the pixels; the best: {_reached(best)}."
            )
    return [Statement(text, "boundary") for text in made]


def _reached(c: Cell) -> str:
    """What a package recovers, with its interval, beside random images of as many bytes."""
    interval = c.recovery_interval()
    surely = "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"
    random, full = c.level(arm="random"), c.level(arm="full")
    beside = "" if not random or not full else f"; random images of as many bytes {random / full:.1%}"
    return f"{c.method} ({_size(c)}) recovers {c.recovery():.1%}{surely} of the full data's balanced accuracy{beside}"


def _few(of: list[Cell]) -> list[Statement]:
    """For each method how often few images do, counted by number, and every case where they do not."""
    made = []
    for method in sorted({c.method for c in of}):
        few = [c for c in of if c.method == method and LEAST <= _stored(c) <= FEW and c.works()]
        cases = [(c, recovery) for c in few if (recovery := c.recovery()) is not None]
        short = [f"{c.data} with {c.words} ({recovery:.1%})" for c, recovery in cases if recovery < ENOUGH]
        if cases:
            made.append(
                f"With {LEAST:.0%} to {FEW:.0%} of the images, counted by number, {method} recovers at least "
                f"{ENOUGH:.0%} of the full data's balanced accuracy in {len(cases) - len(short)} of {len(cases)} "
                + (f"cases; not on {listed(short)}." if short else "cases.")
            )
    return [Statement(text, "results") for text in made]


def _which(of: list[Cell]) -> list[Statement]:
    """Which method was best how often; only where the same methods were measured in the same way on several data."""
    places: dict[tuple[str, str, str], dict[str, float]] = {}
    for c in of:
        level = c.level()
        if level is not None:
            places.setdefault((c.words, c.recipe, c.data), {})[c.method] = level
    contests: dict[tuple[str, str, tuple[str, ...]], list[list[str]]] = {}
    for (size, recipe, _data), levels in places.items():
        if len(levels) > 1:
            best = [m for m in sorted(levels) if levels[m] == max(levels.values())]
            contests.setdefault((size, recipe, tuple(sorted(levels))), []).append(best)
    made = []
    for (size, _recipe, methods), won in contests.items():
        if len(won) < 2:
            continue
        firsts = [m for best in won for m in best]
        winners = sorted(set(firsts), key=lambda m: (-firsts.count(m), m))
        counted = listed([f"{m} on {firsts.count(m)}" for m in winners])
        tied = " (where several were equal, each counts)" if len(firsts) > len(won) else ""
        made.append(f"With {size}, of {listed(list(methods))} the best was {counted} of {len(won)} data sets{tied}.")
    return [Statement(text, "results") for text in made]


def _worth(of: list[Cell]) -> list[Statement]:
    """Whether each method beats keeping as many random images in the same way; none is chosen by its figures."""
    made = []
    for method in dict.fromkeys(c.method for c in of if not c.is_random):
        for size in dict.fromkeys(c.words for c in of):
            ends = {c.data: c.gain(MATCHED, 0) for c in of if (c.method, c.words) == (method, size)}
            lows = {data: low for data, low in ends.items() if low is not None}
            sure = [data for data, low in lows.items() if low > 0]
            if lows:
                where = f": {listed(sure)}" if sure else ""
                sets = "data set" if len(lows) == 1 else "data sets"
                made.append(
                    f"With {size} {method} gains over random images with the same storage and soft labels, with "
                    "every seed's 95 % interval "
                    f"above zero, on {len(sure)} of {len(lows)} {sets}{where}."
                )
    return [Statement(text, "results") for text in made]


def _sites(runs: list[RunRecord]) -> list[Statement]:
    """For each pair of sites and size what each method reached, the mean over seeds."""
    by_place: dict[tuple[str, str, str], dict[str, list[Json]]] = {}
    for run in current(runs):
        if run.kind == "transfer" and run.status == "done":
            for scores in (run.result or {})["sites"].values():
                place = (run.data, run.site or "", run.size_in_words)
                by_place.setdefault(place, {}).setdefault(run.method, []).append(scores)
    made = []
    for (data, site, size), by_method in by_place.items():

        def mean(method: str, arm: str, by_method: dict[str, list[Json]] = by_method) -> float:
            return fmean(scores["arms"][arm]["balanced_accuracy"]["mean"] for scores in by_method[method])

        means = listed([f"{mean(m, 'distilled'):.3f} by {m}" for m in by_method])
        first = next(iter(by_method))
        scores = [s for of_method in by_method.values() for s in of_method]
        guessing = all(s["recovery_above_baseline"]["balanced_accuracy"] is None for s in scores)
        made.append(
            f"Trained on {data}, tested at {site}, with {size}: balanced accuracy {means}; {mean(first, 'full'):.3f} "
            f"with all images, {mean(first, 'random'):.3f} with random ones."
            + (" Not even all images are surely better than guessing there." if guessing else "")
        )
    return [Statement(text, "sites") for text in made]


def _pooled(runs: list[RunRecord]) -> list[Statement]:
    made = []
    for run in (r for r in current(runs) if r.kind == "pooled" and r.status == "done"):
        for site, scores in (run.result or {})["sites"].items():
            gain = scores["gain_over"].get(f"alone: {site}")
            if gain is None or gain["balanced_accuracy"]["ci95"] is None:
                continue
            mean, (low, high) = gain["balanced_accuracy"]["mean"], gain["balanced_accuracy"]["ci95"]
            words = "better" if low > 0 else "worse" if high < 0 else "not surely better or worse"
            which = f"{run.method}, {run.size_in_words}, seed {run.seed}"
            made.append(
                f"At {site}, packages of {run.data} together ({which}) are {words} than its own alone "
                f"({mean:+.3f} [{low:+.3f}, {high:+.3f}])."
            )
    return [Statement(text, "pooled") for text in made]
