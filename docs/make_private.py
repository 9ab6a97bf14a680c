"""The page of private packages beside published ways, written to a file by ``make_results.py``."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any

from medistill.formatting import with_interval

TITLES = {"default": "`distill --epsilon`", "dp-merf": "DP-MERF", "kernel-mean": "kernel mean of pixels"}
METRICS = (("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC"))


def private_page(cells: list[dict[str, Any]]) -> str:
    """docs/results/private.md, from what ``benchmarks/private_table.py`` measured."""
    by_row: dict[tuple[str, float, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_row[cell["set"], cell["epsilon"], cell["method"]].append(cell)
    head = [
        "set",
        "ε",
        "δ",
        "unit",
        "how",
        "draws of the noise",
        *(title for _, title in METRICS),
        "share of all images'",
    ]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (name, epsilon, method), draws in sorted(by_row.items(), key=lambda row: (row[0][0], -row[0][1], row[0][2])):
        guarantee = draws[0]["guarantee"]
        figures = [_figure(draws, metric) for metric, _ in METRICS]
        shares = " / ".join(f"{fmean(draw['recovery'][metric] for draw in draws):.2f}" for metric, _ in METRICS)
        rows.append(
            f"| `{name}` | {epsilon:g} | {guarantee['delta']:g} | {guarantee['unit']} | {TITLES[method]} "
            f"| {len(draws)} | {' | '.join(figures)} | {shares} |"
        )
    for name in dict.fromkeys(cell["set"] for cell in cells):
        first = next(cell for cell in cells if cell["set"] == name)
        for arm, title in (
            ("random", "random images, same bytes, no guarantee"),
            ("full", "all images, no guarantee"),
        ):
            figures = [with_interval(first["arms"][arm][metric]) for metric, _ in METRICS]
            rows.append(f"| `{name}` | - | - | - | {title} | - | {' | '.join(figures)} | |")
    return (
        "# Private packages\n\n"
        "Ten images per class at half the side, hard labels, measured on test images by "
        "`benchmarks/private_table.py`; noise is drawn anew each time, so figures differ. Means "
        "over the draws; in brackets of one draw its 95 % interval, of several their range. DP-MERF and the kernel "
        "mean are plain programs of ours (`benchmarks/private_opponents.py`) that ask the same guard under the same "
        "guarantee. "
        "[What is guaranteed](../explanation/privacy.md#a-guarantee---epsilon).\n\n" + "\n".join(rows) + "\n"
    )


def _figure(draws: list[dict[str, Any]], metric: str) -> str:
    found = [draw["arms"]["distilled"][metric] for draw in draws]
    if len(found) == 1:
        return with_interval(found[0])
    means = [value["mean"] for value in found]
    return f"{fmean(means):.3f} [{min(means):.3f}, {max(means):.3f}]"
