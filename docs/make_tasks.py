"""The pages of both starts and of findings, grades and volumes, written to files by ``make_results.py``."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from statistics import fmean
from typing import Any

from medistill.formatting import with_interval
from medistill.reporting.words import ARM_TITLES
from medistill.tasks.task import numbered

ARMS = ARM_TITLES | {"random": "Random real images, same bytes"}
DEFAULT, REAL_START = "default", "default-real-start"
PER_CLASS = 10


def starts_page(cells: list[dict[str, Any]]) -> str:
    """docs/results/starts.md, from the cells of the table of methods."""
    by_seed: dict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for cell in cells:
        # What an earlier version distilled was never audited, and is measured again.
        if cell["ipc"] == PER_CLASS and cell["method"] in (DEFAULT, REAL_START) and cell.get("audits"):
            by_seed[cell["set"], cell["seed"]][cell["method"]] = cell
    both: dict[str, list[dict[str, dict[str, Any]]]] = defaultdict(list)
    for (name, _), starts in sorted(by_seed.items()):
        if len(starts) == 2:
            both[name].append(starts)
    parts = [
        "# First images: noise or real ones",
        "The default at ten images per class, measured by `make methods-table` on test images, means over seeds of "
        "distilling that both were measured with. The interval of a difference adds the intervals of both as if they "
        "were independent, which is too wide: both are measured on the same test images.",
    ]
    for metric, title in (("balanced_accuracy", "Balanced accuracy"), ("auroc", "AUROC")):
        rows = ["| set | seeds | from noise | from real images | difference |", "|---" * 5 + "|"]
        differences = []
        for name, pairs in both.items():
            noise, real = (summary([pair[start] for pair in pairs], metric) for start in (DEFAULT, REAL_START))
            mean, half = noise[0] - real[0], sqrt(noise[1] ** 2 + real[1] ** 2)
            differences.append(mean)
            rows.append(
                f"| `{name}` | {len(pairs)} | {noise[0]:.3f} | {real[0]:.3f} "
                f"| {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] |"
            )
        if differences:
            rows.append(f"| mean over sets | | | | {fmean(differences):+.3f} |")
        parts += [f"## {title}", "\n".join(rows)]
    parts += [
        "## Resemblance",
        "Correlation of each image with the nearest training image and with the nearest image that took no part, at "
        "the stored size: medians, the median of the difference, the share of images above .95; the last two also "
        "with as many training images as images that took no part, as the nearest of many is nearer. [What it "
        "measures, and what it does not](../explanation/resemblance.md).",
    ]
    rows = [
        "| set | start | seed | training | held out | difference | over .95: training / held out "
        "| difference in equal number | over .95 in equal number |",
        "|---" * 9 + "|",
    ]
    for (name, seed), starts in sorted(by_seed.items()):
        for _, cell in sorted(starts.items()):
            rows += [f"| `{name}` | {cell['start']} | {seed} | {resemblance(cell)} |"]
    return "\n\n".join([*parts, "\n".join(rows)]) + "\n"


def summary(cells: list[dict[str, Any]], metric: str) -> tuple[float, float]:
    """Mean over seeds, and half the mean width of the intervals, of the distilled arm."""
    measured = [cell["arms"]["distilled"][metric] for cell in cells]
    return fmean(m["mean"] for m in measured), fmean((m["ci95"][1] - m["ci95"][0]) / 2 for m in measured)


def resemblance(cell: dict[str, Any]) -> str:
    """The columns of a package's resemblance."""
    details = next(a["details"] for a in cell["audits"] if a["name"] == "resemblance")
    figures = [f"{details[name]:.3f}" for name in ("median_training", "median_held_out", "median_difference")]
    equal = "_equal_number"
    for of in ("", equal):
        shares = (details[f"share_over_0.95_{side}{of}"] for side in ("training", "held_out"))
        figures += [f"{details['median_difference' + equal]:.3f}"] if of else []
        figures.append(" / ".join(f"{share:.0%}" for share in shares))
    return " | ".join(figures)


def tasks_page(cells: list[dict[str, Any]]) -> str:
    """docs/results/tasks.md."""
    parts = [
        "# Findings, grades and volumes",
        "Measured by `make tasks-table` (`benchmarks/tasks_table.py`; the objects lie in [tasks/](tasks/)): the "
        "default at ten images per class, grade or finding, seed 0, on test images seen once. In brackets the 95 % "
        "interval over networks and test images. Seconds are of each command on two CPU "
        "cores that others may have used too. Where fewer images than all are *seen equally often*, as many of each "
        "class as the smallest one has were taken, as evaluation did before.",
    ]
    for cell in cells:
        task = numbered(cell["task"], 2)
        rows = [
            "| trained on | images | " + " | ".join(metric.title for metric in task.metrics) + " |",
            "|---" * (2 + len(task.metrics)) + "|",
        ]
        for arm, scores in cell["arms"].items():
            values = [with_interval(scores[name]) for name in task.metric_names]
            rows.append(f"| {ARMS[arm]} | {cell['images'][arm]} | {' | '.join(values)} |")
        for key, title in (
            ("gain_over_random", "random"),
            ("gain_over_random_matched", "the same storage and labels"),
        ):
            values = [with_interval(cell[key][name], "+.3f") for name in task.metric_names]
            rows.append(f"| **gain over {title}** | | {' | '.join(values)} |")
        spent = {**cell["seconds"], "distill": cell["distillation"]["seconds"]}
        seconds = ", ".join(f"`{command}` {value:.0f}" for command, value in spent.items())
        parts += [
            f"## {cell['set']}",
            f"{task.title.capitalize()}, start: {cell['start']}, {cell['test_images']} test images, "
            f"{cell['bytes']:,} bytes. Seconds: {seconds}.",
            "\n".join(rows),
            " ".join(finding["explanation"] for finding in cell["audits"]),
        ]
    return "\n\n".join(parts) + "\n"
