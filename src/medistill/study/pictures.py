"""Drawings of a study."""

from __future__ import annotations

from medistill.reporting.figures import svg_lines
from medistill.reporting.html import Picture, picture_uri
from medistill.study.tables import Cell


def pictures(of: list[Cell]) -> list[tuple[str, Picture]]:
    """Recovery against images per class, a panel for each data set, a line for each method."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for c in sorted(of, key=lambda c: (c.data, c.method, c.ipc or 0)):
        recovered = c.recovery()
        if c.ipc is not None and recovered is not None:
            panels.setdefault(c.data, {}).setdefault(c.method, []).append((float(c.ipc), recovered))
    if not panels:
        return []
    drawn = svg_lines(panels, "images per class", "share of full balanced accuracy", (0.9,))
    told = "; ".join(
        f"{data}: " + ", ".join(f"{m} {p[-1][1]:.0%} at {p[-1][0]:.0f}" for m, p in by_method.items())
        for data, by_method in panels.items()
    )
    text = f"Line charts of recovery against images per class, one for each data set. At the largest size: {told}."
    caption = "Share of the full data's balanced accuracy, mean over seeds; dotted: 90 %."
    return [("Recovery by size", Picture(picture_uri(drawn, "svg+xml"), text, caption))]
