"""The page of ``check --html``: what a data set holds, in tables and in pictures of its real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Pixels, RawImages
from medistill.data.dataset import Dataset
from medistill.data.duplicates import IN_PAIRS
from medistill.data.intensity import between_percentiles, intensity_window, within_bounds
from medistill.data.resize import fitted, middle_slices, resize, small_pictures
from medistill.data.shortcuts import CUES
from medistill.keys import Key
from medistill.reporting.figures import image_grid
from medistill.reporting.html import Picture, picture_uri
from medistill.reporting.page import Column, Page, Table, render_page

EXAMPLES = 10
"""Images of a class that are shown."""

LOOKED_AT = 2000
"""Training images among which outliers are sought, at most."""

SIDE = 64
"""Pixels of a side to which larger images are brought for the page."""


def check_page(dataset: Dataset, found: Json) -> str:
    """One self-contained HTML file.

    Args:
        dataset: what was checked.
        found: what ``check`` answers.
    """
    splits = ", ".join(f"{name} {len(part):,}" for name, part in dataset.splits.items())
    shape = "x".join(map(str, dataset.image.shape))
    blocking = sum(problem["level"] == "blocking" for problem in found["problems"])
    task, pictures = dataset.task, _pictures(dataset, found)
    lead = [
        f"{task.title}, {task.outputs} {task.plural}; images by split: {splits}; {shape} pixels, "
        f"{'gray' if dataset.image.channels == 1 else 'RGB'}, {dataset.image.dtype}.",
        f"{blocking} blocking problems, {len(found['problems']) - blocking} warnings.",
        "This page shows real images. It belongs where they belong.",
    ]
    page = render_page(Page(f"Check of {found['name']}", lead, [], pictures, _tables(dataset, found)))
    return page.encode("utf-8", "replace").decode()  # names of classes may have no UTF-8, which is told there


def _tables(dataset: Dataset, found: Json) -> list[Table]:
    view = found["overview"]
    task, strata = dataset.task, dataset.task.strata
    per_split = [dataset.counts(name) for name in dataset.splits]
    told = [
        [CUES[s["cue"]], s["target"] or task.plural, *(s[k] for k in ("balanced_accuracy", "low", "chance", "whole")),
         "yes" if s["strong"] else "no"]
        for s in found["shortcuts"]
    ]  # fmt: skip
    sites = [
        [name, sum(own["images"].values()), *(own["per_stratum"] or [None] * len(strata))]
        for name, own in view["sites"].items()
    ]
    tables = [
        Table(
            "problems", "Problems", "Rows are counted from 0.",
            [Column("level"), Column("problem"), Column("found"), Column("what to do"), Column("images")],
            [[p["level"], p["kind"], p["found"], p["remedy"], _named(p)] for p in found["problems"]],
        ),
        Table(
            "shortcuts", "Does something beside the disease tell the class?",
            "Balanced accuracy of a logistic regression on training images, tested on others than it was fitted to; "
            "low: lower end of its 95 % interval. A third of the way from chance to certainty is a warning.",
            [Column("cue"), Column("of"), Column("told", ".2f"), Column("low", ".2f"), Column("chance", ".2f"),
             Column("whole images", ".2f"), Column("warning")],
            told,
        ),
        Table(
            "classes", f"Images by {task.noun}", "",
            [Column(task.noun), *(Column(name, ",") for name in dataset.splits)],
            [[name, *counts] for name, *counts in zip(strata, *per_split, strict=True)],
        ),
        Table(
            "ranges", "Intensities",
            "Of all pixels, and of all but 0.1 % at either end; what is not finite does not count.",
            [Column("split"), *(Column(name, "g") for name in ("least", "greatest", "most from", "most to"))],
            [[name, *own["all"], *own["most"]] for name, own in view["ranges"].items()],
        ),
        Table(
            "patients", "Patients", "", [Column("split"), Column("patients", ","), Column("images", ",")],
            [[name, patients, len(dataset.splits[name])] for name, patients in view["patients"].items()],
        ),
        Table(
            "sites", "Sites or scanners", "",
            [Column("site or scanner"), Column("images", ","), *(Column(f"train: {name}", ",") for name in strata)],
            sites,
        ),
        Table(
            "sizes", "Sizes of the files", "Brought to one.", [Column("pixels"), Column("images", ",")],
            [[size, images] for size, images in view["sizes"].items()],
        ),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def _named(problem: Json) -> str:
    if problem.get("files"):
        return ", ".join(map(str, problem["files"][:3])) + (" ..." if len(problem["files"]) > 3 else "")
    listed = [f"{split} {row}" for split, row in problem["rows"][:4]]
    return ", ".join(listed) + (" ..." if len(problem["rows"]) > 4 else "")


def _pictures(dataset: Dataset, found: Json) -> list[tuple[str, Picture]]:
    window = dataset.description.window or intensity_window(dataset.train.images)
    groups, membership = [], dataset.task.membership(dataset.train.targets)
    for stratum in range(membership.shape[1]):
        rows = np.flatnonzero(membership[:, stratum])
        chosen = np.sort(Key(0).child("examples", stratum).numpy().permutation(rows)[:EXAMPLES])
        groups.append((dataset.task.strata[stratum], [("train", int(row)) for row in chosen]))
    shown = [(f"Training images: {name}", rows, "") for name, rows in groups]
    shown.append((
        "Outliers", [("train", row) for row in outliers(dataset.train.images)],
        "Training images whose nearest neighbours are farthest away; of large sets some were looked at.",
    ))  # fmt: skip
    for problem in found["problems"]:
        caption = problem["found"] + (". In pairs." if problem["kind"] in IN_PAIRS else "")
        shown.append((problem["kind"].capitalize(), [(split, row) for split, row in problem["rows"]], caption))
    return [(title, _grid(dataset, rows, window, title, caption)) for title, rows, caption in shown if rows]


def _grid(
    dataset: Dataset, rows: Sequence[tuple[str, int]], window: tuple[float, float], title: str, caption: str
) -> Picture:
    images = [_shown(dataset.splits[split].images[row], window) for split, row in rows]
    images = [np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image for image in images]
    lines = [np.stack(images[i : i + EXAMPLES]) for i in range(0, len(images), EXAMPLES)]
    scale = max(1, round(56 / max(images[0].shape[-2:])))
    where = ", ".join(f"{split} {row}" for split, row in rows)
    return Picture(
        picture_uri(image_grid(lines, scale), "png"), f"{len(rows)} real images: {title}",
        f"{caption} Rows: {where}.".strip(),
    )  # fmt: skip


def _shown(image: npt.NDArray[np.generic], window: tuple[float, float]) -> Pixels:
    """An image (c, *spatial), of volumes the middle slice, as 8 bits at 64 pixels at most; NaN is black."""
    low, high = within_bounds(np.array(window))
    values = within_bounds(middle_slices(image[None]), nan=low)
    values = (values - low) / (high - low) if high > low else between_percentiles(values, values)
    shape = values.shape[2:]
    small = resize(values, fitted(shape, (SIDE, SIDE)) if max(shape) > SIDE else shape)
    return np.rint(np.clip(small[0], 0, 1) * 255).astype(np.uint8)


def outliers(images: RawImages, count: int = EXAMPLES) -> list[int]:
    """Rows of those images that are least like their five nearest neighbours, at 16 pixels a side, among 2,000."""
    from sklearn.neighbors import NearestNeighbors

    if len(images) < 2 * count:
        return []
    rows = np.sort(Key(0).child("outliers").numpy().permutation(len(images))[:LOOKED_AT])
    flat = small_pictures(images, rows, 16).reshape(len(rows), -1)
    distance, _ = NearestNeighbors(n_neighbors=6).fit(flat).kneighbors(flat)
    return [int(rows[place]) for place in np.argsort(-distance[:, 1:].mean(axis=1), kind="stable")[:count]]
