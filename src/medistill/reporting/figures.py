"""Drawing: numbers and pixels in, PNG or SVG bytes out. Readable without colour."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from medistill.aliases import Pixels
from medistill.data.image import in_8_bits
from medistill.package.package import preview
from medistill.package.results import EvaluationResult
from medistill.reporting.words import ARM_TITLES, task_of, titles

STYLES: dict[str, dict[str, Any]] = {
    "distilled": {"color": "#0b3c5d", "linestyle": "-", "marker": "o", "hatch": ""},
    "random": {"color": "#b5541c", "linestyle": "--", "marker": "s", "hatch": "////"},
    "random_matched": {"color": "#8a6d00", "linestyle": (0, (1, 1)), "marker": "v", "hatch": "\\\\\\\\"},
    "full": {"color": "#3a7d44", "linestyle": "-.", "marker": "^", "hatch": "...."},
    "full_balanced": {"color": "#777777", "linestyle": ":", "marker": "D", "hatch": "xxxx"},
}


def image_grid(groups: list[Pixels], scale: int = 2, columns: int = 10) -> bytes:
    """A PNG of images (n, c, *spatial) in rows, one group above the other with a gap between; of volumes slices."""
    from PIL import Image

    rows = []
    for group in groups:
        shown = np.stack([in_8_bits(preview(image)) for image in group[:columns]])
        height, width = shown.shape[2:]
        row = np.full((height, columns * (width + 1), 3), 255, dtype=np.uint8)
        for i, pixels in enumerate(shown):
            row[:, i * (width + 1) : i * (width + 1) + width] = np.broadcast_to(
                pixels.transpose(1, 2, 0), (height, width, 3)
            )
        rows += [row, np.full((2, row.shape[1], 3), 255, dtype=np.uint8)]
    picture = Image.fromarray(np.concatenate(rows[:-1]))
    stream = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "medistill", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": "medistill"})
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def bars(result: EvaluationResult) -> bytes:
    """The arms' primary metric, and another where there is one within 0 and 1, with 95 % intervals, as SVG."""
    figure = _figure(7.4, 1.3 + 0.4 * len(result.arms))
    named = titles(result)
    shown = shown_metrics(result)
    for axes, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        metric = task_of(result).metric(name)
        for place, arm in enumerate(named):
            value = result.arms[arm][name]
            if value.mean is None:
                axes.text(0.02, -place, "not defined by the test images", va="center", fontsize=9)
                continue
            mean, (low, high) = value.mean, value.ci95 or [value.mean, value.mean]
            style = STYLES[arm]
            axes.barh(-place, mean, color="white", edgecolor=style["color"], hatch=style["hatch"], height=0.6)
            axes.plot([low, high], [-place, -place], color="black", linewidth=2, solid_capstyle="butt")
            axes.text(min(1.0, high) + 0.015, -place, f"{mean:.3f}", va="center", fontsize=9)
        baseline = result.majority_baseline[name]
        if baseline is not None:
            axes.axvline(baseline, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.16)
        axes.set_xticks(np.arange(0, 1.01, 0.2))
        axes.set_title(_plain(metric.title), fontsize=10)
        axes.set_yticks([-i for i in range(len(named))], list(named.values()), fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return _svg(figure)


def shown_metrics(result: EvaluationResult) -> list[str]:
    """The two metrics that are drawn: the primary one, and the first other that lies between 0 and 1."""
    task = task_of(result)
    within = [m.name for m in task.metrics if m.bounds == (0.0, 1.0) and m.name != "accuracy"]
    ordered = [result.primary, *(name for name in ("auroc", *within) if name in within and name != result.primary)]
    return ordered[:2]


def learning_curves(result: EvaluationResult) -> bytes | None:
    """The primary metric on validation images while training, mean over networks, as SVG; None without validation.

    Of networks that the cache had only the end is known: they are left out where others tell more.
    """
    longest = {arm: max(map(len, runs), default=0) for arm, runs in result.curves.items()}
    curves = {
        arm: np.array([run for run in runs if len(run) == longest[arm]])
        for arm, runs in result.curves.items()
        if longest[arm]
    }
    if not curves:
        return None
    figure = _figure(7.4, 3.0)
    axes, named = figure.subplots(), titles(result)
    for arm, runs in curves.items():
        mean = runs.mean(axis=0)
        style = STYLES[arm]
        axes.plot(
            mean[:, 0], mean[:, 2], label=named[arm], markersize=5,
            color=style["color"], linestyle=style["linestyle"], marker=style["marker"],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("gradient steps")
    axes.set_ylabel(f"{task_of(result).metric(result.primary).title},\nvalidation images")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return _svg(figure)


def recall_bars(result: EvaluationResult) -> bytes:
    """Recall per class, grade or finding of the package, random and full, as SVG."""
    names = result.class_names
    arms = ("distilled", "random", "full")
    figure = _figure(7.4, 1.1 + 0.55 * len(names))
    axes, named = figure.subplots(), titles(result)
    for offset, arm in zip((0.27, 0, -0.27), arms, strict=True):
        values = [v if v is not None else 0.0 for v in result.details[arm].recall]
        places = np.arange(len(names))[::-1] + offset
        style = STYLES[arm]
        axes.barh(
            places,
            values,
            0.25,
            color="white",
            edgecolor=style["color"],
            hatch=style["hatch"],
            label=named[arm],
        )
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=7)
    short = [_plain(name if len(name) <= 28 else name[:26] + "…") for name in names]
    axes.set_yticks(np.arange(len(names))[::-1], short, fontsize=9)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel(f"share of test images of the {task_of(result).noun} that was recognised")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, 1.0 + 0.6 / len(names)), ncols=3, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure)


def confusion(result: EvaluationResult, arm: str) -> bytes | None:
    """Confusion as shares of each true class, numbers in the cells, as SVG; grades in their order. None where several
    findings may hold.
    """
    counted = result.details[arm].confusion
    if counted is None:
        return None
    task, counts = task_of(result), np.array(counted, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(counts)
    figure = _figure(1.7 + 0.42 * n, 1.3 + 0.4 * n)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.4)
    for row in range(n):
        for column in range(n):
            axes.text(
                column,
                row,
                f"{100 * shares[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.75 else "black",
            )
    axes.set_xticks(range(n))
    axes.set_yticks(range(n))
    axes.set_xlabel(f"predicted {task.noun}")
    axes.set_ylabel(f"true {task.noun}")
    axes.set_title(f"{ARM_TITLES[arm]} (%)", fontsize=9)
    return _svg(figure)


def loss_curve(losses: list[float]) -> bytes:
    """The distillation loss by step, smoothed, as SVG."""
    figure = _figure(7.4, 2.2)
    axes = figure.subplots()
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(np.arange(len(smooth)) + window, smooth, color="black")
    axes.set_xlabel("step")
    axes.set_ylabel("matching loss")
    if smooth.min() > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    return _svg(figure)


LINES: list[tuple[str, Any, str]] = [
    ("#0b3c5d", "-", "o"), ("#b5541c", "--", "s"), ("#3a7d44", "-.", "^"), ("#8a6d00", ":", "v"),
    ("#6a3d9a", (0, (3, 1, 1, 1)), "D"), ("#555555", (0, (5, 2)), "x"), ("#c2185b", (0, (1, 1)), "P"),
    ("#00838f", "-", "*"), ("#5d4037", "--", "<"), ("#1a237e", "-.", ">"),
]  # fmt: skip
"""Colour, line and marker of the first, second, … line of a chart."""


def _plain(text: str) -> str:
    """Text as it is: a dollar begins no formula, and a line that begins with "_" stays in the legend."""
    return f" {text}".replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")


Lines = dict[str, dict[str, list[tuple[float, float]]]]
"""Points by panel and by line."""


def svg_lines(panels: Lines, x_title: str, y_title: str, levels: tuple[float, ...] = (), columns: int = 3) -> bytes:
    """Line charts with a logarithmic horizontal axis, one panel beside the other, as SVG."""
    rows = -(-len(panels) // columns)
    figure = _figure(9.6, 0.9 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    styles = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for name, points in lines.items():
            colour, dash, marker = styles[name]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markersize=5, label=_plain(name))
        for level in levels:
            axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(_plain(title), fontsize=9)
        axes.set_xlabel(x_title, fontsize=8)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    grid[0][0].set_ylabel(y_title, fontsize=8)
    _legend_of_all(figure, grid)
    return _svg(figure)


def _legend_of_all(figure: Figure, grid: Any) -> None:
    by_label: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        by_label |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(by_label.values()), list(by_label), loc="outside lower center", ncols=min(6, len(by_label)), fontsize=8
    )


Clouds = dict[str, dict[str, list[tuple[float, float, float, float]]]]
"""By panel and kind of point: across, up, and both ends of an interval."""


def svg_clouds(panels: Clouds, x_title: str, y_title: str, across: bool = False, columns: int = 3) -> bytes:
    """Scatter plots with intervals, one panel beside the other, as SVG.

    Args:
        panels: the points.
        x_title, y_title: of all panels.
        across: whether intervals lie along the horizontal axis, and the line of equal values is drawn.
        columns: panels beside each other.
    """
    rows = -(-len(panels) // columns)
    figure = _figure(9.6, 0.9 + 2.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    names = sorted({name for kinds in panels.values() for name in kinds})
    for axes, (title, kinds) in zip(grid.flat, panels.items(), strict=False):
        for name, points in sorted(kinds.items()):
            colour, _, marker = LINES[names.index(name) % len(LINES)]
            x, y, low, high = zip(*points, strict=True)
            draw, places = (axes.hlines, y) if across else (axes.vlines, x)
            draw(places, low, high, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(x, y, color=colour, linestyle="none", marker=marker, markersize=4, label=_plain(name))
        if across:
            both = [v for points in kinds.values() for x, y, *_ in points for v in (x, y)]
            axes.plot([min(both), max(both)], [min(both), max(both)], color="black", linewidth=0.8, linestyle=":")
        axes.set_title(_plain(title), fontsize=9)
        axes.set_xlabel(x_title, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for first in grid[:, 0]:
        first.set_ylabel(y_title, fontsize=8)
    _legend_of_all(figure, grid)
    return _svg(figure)
