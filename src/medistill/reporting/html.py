"""One self-contained HTML file; every picture inside it, with its text alternative."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medistill import __version__
from medistill.numbers import with_interval
from medistill.package.package import Package
from medistill.reporting import figures
from medistill.reporting.words import ARM_TITLES, titles, verdict
from medistill.types import Json

if TYPE_CHECKING:
    import jinja2


PAGE_MARK = b'<meta name="generator" content="medistill">'
"""Stands at the beginning of every page of ours."""


@dataclass(frozen=True)
class Picture:
    """A picture with its text alternative."""

    data: str
    text: str
    caption: str = ""


@dataclass(frozen=True)
class RealImages:
    """Real training images by class, shown beside the distilled ones; empty where they are not at hand."""

    by_class: list[npt.NDArray[np.uint8]] = field(default_factory=list)


def render(package: Package, result: Json, real: RealImages, losses: list[float], warnings: list[str]) -> str:
    """The report's HTML.

    Args:
        package: as read back.
        result: from ``medistill.evaluate``.
        real: training images to show beside the distilled ones.
        losses: of every distillation step, where known.
        warnings: what the check of the data said.
    """
    coreset = bool(package.manifest["contains_real_images"])
    return template("report.html.jinja").render(
        m=package.manifest,
        r=result,
        version=__version__,
        arm_titles=titles(result),
        with_interval=with_interval,
        verdict=verdict(result, coreset),
        classes=_classes(package, real),
        shows_real=bool(real.by_class) or coreset,
        charts=_charts(result, losses),
        warnings=warnings,
        bytes=package.size_bytes,
        metric_titles={
            "accuracy": "Accuracy",
            "balanced_accuracy": "Balanced accuracy",
            "auroc": "AUROC (macro)",
            "f1_macro": "F1 (macro)",
        },
    )


def template(name: str) -> jinja2.Template:
    """A page's template; everything put into it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("medistill", "reporting"),
    )
    return environment.get_template(name)


def picture_uri(content: bytes, kind: str) -> str:
    """A picture as the address that shows it, so that the page needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _classes(package: Package, real: RealImages) -> list[Json]:
    shown = []
    scale = max(1, round(56 / max(package.pixels.shape[2:])))
    word = "chosen real" if package.manifest["contains_real_images"] else "distilled"
    for label, name in enumerate(package.class_names):
        own = package.pixels[package.labels == label]
        entry: Json = {"name": name, "count": len(own), "pictures": []}
        if real.by_class and len(real.by_class[label]):
            picture = figures.image_grid([real.by_class[label]], scale)
            count = min(10, len(real.by_class[label]))
            text = f"{count} real training images of the class {name}"
            entry["pictures"].append(Picture(picture_uri(picture, "png"), text, "real"))
        if len(own):
            picture = figures.image_grid([own], scale)
            text = f"{min(10, len(own))} {word} images of the class {name}"
            entry["pictures"].append(Picture(picture_uri(picture, "png"), text, word))
        shown.append(entry)
    return shown


def _charts(result: Json, losses: list[float]) -> dict[str, list[Picture]]:
    def spoken(metric: str) -> str:
        return ", ".join(
            f"{title} {with_interval(result['arms'][arm][metric])}" for arm, title in titles(result).items()
        )

    recalls = ", ".join(
        f"{name} {'not in the test data' if value is None else format(value, '.2f')}"
        for name, value in zip(result["class_names"], result["details"]["distilled"]["recall"], strict=True)
    )
    charts = {
        "bars": [
            Picture(
                picture_uri(figures.bars(result), "svg+xml"),
                "Bar chart with 95 % intervals; guessing as a dotted line. "
                f"Balanced accuracy: {spoken('balanced_accuracy')}. AUROC: {spoken('auroc')}.",
            )
        ],
        "recall": [
            Picture(
                picture_uri(figures.recall_bars(result), "svg+xml"),
                f"Bar chart of recall per class of this package: {recalls}.",
            )
        ],
        "confusion": [
            Picture(
                picture_uri(figures.confusion(result, arm), "svg+xml"),
                f"Confusion matrix of {ARM_TITLES[arm].lower()}: rows are true classes, columns predicted ones.",
            )
            for arm in ("distilled", "full")
        ],
        "curves": [],
        "loss": [],
    }
    curves = figures.learning_curves(result)
    if curves is not None:
        text = "Line chart of balanced accuracy on validation images against gradient steps, one line for each arm."
        charts["curves"].append(Picture(picture_uri(curves, "svg+xml"), text))
    if len(losses) > 1:
        text = f"Line chart of the matching loss over {len(losses)} steps, from {losses[0]:.3g} to {losses[-1]:.3g}."
        charts["loss"].append(Picture(picture_uri(figures.loss_curve(losses), "svg+xml"), text))
    return charts
