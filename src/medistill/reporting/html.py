"""One self-contained HTML file; every picture inside it, with its text alternative."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medistill import __version__
from medistill.aliases import Json, Pixels
from medistill.package.package import Package
from medistill.package.results import EvaluationResult
from medistill.reporting import figures
from medistill.reporting.words import ARM_TITLES, task_of, titles, verdict

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
class Pair:
    """An image of the package and the real image most like it, both (c, *spatial) as stored, and how like."""

    similarity: float
    synthetic: Pixels
    real: Pixels


@dataclass(frozen=True)
class PairRow:
    """The pairs that are most alike.

    Args:
        title: of the real images.
        measure: what likeness is measured by.
        pairs: most alike first.
    """

    title: str
    measure: str
    pairs: list[Pair]


@dataclass(frozen=True)
class ShownImages:
    """Real images that the page shows; empty where they are not at hand.

    Args:
        by_stratum: training images of each stratum, beside the distilled ones.
        closest: pairs of images that are most alike, by several measures.
    """

    by_stratum: list[Pixels] = field(default_factory=list)
    closest: list[PairRow] = field(default_factory=list)


def render(
    package: Package, result: EvaluationResult, shown: ShownImages, losses: list[float], warnings: list[str]
) -> str:
    """The report's HTML.

    Args:
        package: as read back.
        result: from an evaluation.
        shown: real images to show beside the distilled ones.
        losses: of every distillation step, where known.
        warnings: what the check of the data said.
    """
    manifest = package.manifest
    real = manifest.privacy.contains_real_images
    return template("report.html.jinja").render(
        m=manifest,
        r=result,
        task=package.task,
        data=manifest.provenance.data,
        coreset=manifest.method.kind == "coreset",
        version=__version__,
        arm_titles=titles(result),
        verdict=verdict(result, real, manifest.audits, manifest.privacy.guarantee),
        strata=_strata(package, shown),
        pairs=_pairs(shown),
        shows_real=bool(shown.by_stratum) or real,
        charts=_charts(result, losses),
        warnings=warnings,
        bytes=package.size_bytes,
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


def _strata(package: Package, shown: ShownImages) -> list[Json]:
    entries = []
    scale = max(1, round(56 / max(package.stored_shape)))
    word = "distilled" if package.manifest.method.kind == "distillation" else "chosen real"
    for stratum, name in enumerate(package.task.strata):
        images = package.pixels[package.strata == stratum]
        entry: Json = {"name": name, "count": len(images), "pictures": []}
        if shown.by_stratum and len(shown.by_stratum[stratum]):
            picture = figures.image_grid([shown.by_stratum[stratum]], scale)
            count = min(10, len(shown.by_stratum[stratum]))
            text = f"{count} real training images: {name}"
            entry["pictures"].append(Picture(picture_uri(picture, "png"), text, "real"))
        if len(images):
            picture = figures.image_grid([images], scale)
            text = f"{min(10, len(images))} {word} images: {name}"
            entry["pictures"].append(Picture(picture_uri(picture, "png"), text, word))
        if entry["pictures"]:
            entries.append(entry)
    return entries


def _pairs(shown: ShownImages) -> list[Json]:
    """Rows of pictures: the package's images above the real ones most like them."""
    rows = []
    for row in shown.closest:
        scale = max(1, round(80 / max(row.pairs[0].synthetic.shape[1:])))
        stacks = [np.stack([p.synthetic for p in row.pairs]), np.stack([p.real for p in row.pairs])]
        numbers = ", ".join(f"{p.similarity:.3f}" for p in row.pairs)
        picture = figures.image_grid(stacks, scale, columns=len(row.pairs))
        text = f"Images of the package above the {row.title} most like them; {row.measure} {numbers}."
        rows.append(
            {
                "title": row.title, "measure": row.measure, "numbers": numbers,
                "picture": Picture(picture_uri(picture, "png"), text),
            }
        )  # fmt: skip
    return rows


def _charts(result: EvaluationResult, losses: list[float]) -> dict[str, list[Picture]]:
    task = task_of(result)

    def spoken(metric: str) -> str:
        values = ", ".join(f"{title} {result.arms[arm][metric].text()}" for arm, title in titles(result).items())
        return f"{task.metric(metric).title}: {values}."

    recalls = ", ".join(
        f"{name} {'not in the test data' if value is None else format(value, '.2f')}"
        for name, value in zip(result.class_names, result.details["distilled"].recall, strict=True)
    )
    charts: dict[str, list[Picture]] = {
        "bars": [
            Picture(
                picture_uri(figures.bars(result), "svg+xml"),
                "Bar chart with 95 % intervals; guessing as a dotted line. "
                + " ".join(spoken(metric) for metric in figures.shown_metrics(result)),
            )
        ],
        "recall": [
            Picture(
                picture_uri(figures.recall_bars(result), "svg+xml"),
                f"Bar chart of recall per {task.noun} of this package: {recalls}.",
            )
        ],
        "confusion": [],
        "curves": [],
        "loss": [],
    }
    for arm in ("distilled", "full"):
        matrix = figures.confusion(result, arm)
        if matrix is not None:
            text = (
                f"Confusion matrix of {ARM_TITLES[arm].lower()}: rows are true {task.plural}, columns predicted ones."
            )
            charts["confusion"].append(Picture(picture_uri(matrix, "svg+xml"), text))
    curves = figures.learning_curves(result)
    if curves is not None:
        metric = task.metric(result.primary).title
        text = f"Line chart of {metric} on validation images against gradient steps, one line for each arm."
        charts["curves"].append(Picture(picture_uri(curves, "svg+xml"), text))
    if len(losses) > 1:
        text = f"Line chart of the matching loss over {len(losses)} steps, from {losses[0]:.3g} to {losses[-1]:.3g}."
        charts["loss"].append(Picture(picture_uri(figures.loss_curve(losses), "svg+xml"), text))
    return charts
