"""``report``: one page that tells what a package is worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medistill.aliases import Json
from medistill.audits.audit import Population, populations
from medistill.audits.checks.resemblance import nearest_images
from medistill.audits.closest import Closest, closest_in_features, closest_in_structure
from medistill.commands.evaluate import Measured, measure
from medistill.config import EvaluateConfig
from medistill.data.image import encoded
from medistill.data.preprocess import PreparedDataset
from medistill.data.sampling import draw_by_stratum
from medistill.distil.checkpoint import RunFolder
from medistill.files import require_apart, require_ours, require_writable, write_atomically
from medistill.keys import Key
from medistill.package.package import Package
from medistill.reporting.html import PAGE_MARK, Pair, PairRow, ShownImages, render

SHOWN = 10
"""Real images of each class."""

LOOKED_AT = 5000
"""Real images whose structure and features are compared, at most."""

PAIRS = 6
"""Pairs of a distilled image and the real one most like it."""


def report(
    package: str | Path,
    *,
    on: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    classes: Mapping[str, str | None] | None = None,
    progress: bool = False,
) -> Json:
    """Evaluate a package (what was evaluated before comes from the cache) and write the page.

    The page shows real training images beside the distilled ones, so it stays with the owner
    of the data.

    Args:
        package: folder or zip.
        on: the data set.
        out: HTML file; by default ``report.html`` in the run's folder beside the package.
        config, classes: as for ``evaluate``.
        progress: show progress on standard error.

    Returns:
        ``report`` (path of the page) and ``evaluation``.

    Raises:
        PackageError, DataError, ConfigError, OutputError: one line each.
    """
    folder = RunFolder(Path(package))
    target = Path(out).expanduser() if out is not None else folder.path / "report.html"
    require_apart(target, "--out", folder.out, on)
    require_ours(target, "--out", PAGE_MARK)
    require_writable(target, "--out")
    measured = measure(package, on, config or EvaluateConfig(), attach=False, progress=progress, classes=classes)
    shown = _shown_images(measured)
    page = render(measured.package, measured.result, shown, folder.read_log(), measured.warnings)
    write_atomically(target, page)
    return {"report": str(target.resolve()), "evaluation": measured.result.as_json()}


def _shown_images(measured: Measured) -> ShownImages:
    """Random training images of each stratum, and the pairs of distilled and real images that are most alike."""
    prepared, package = measured.prepared, measured.package
    train = prepared.train
    membership, key = prepared.task.membership(train.targets), Key(0).child("shown")
    drawn = draw_by_stratum(membership, [SHOWN] * membership.shape[1], lambda s: key.child(s))
    closest = _closest(package, prepared) if measured.result.data.same_as_distilled else []
    return ShownImages([train.pixels[rows] for rows in drawn], closest)


def _closest(package: Package, prepared: PreparedDataset) -> list[PairRow]:
    """The pairs most alike, with training images and with images that took no part, by each measure."""
    members, others = populations(prepared)
    sides = {"training images": members, "held-out images": others.without(members.patients)}
    rows: list[PairRow] = []
    for title, population in sides.items():
        if not len(population):
            continue
        near, key = nearest_images(package.pixels, population.pixels), Key(0).child("closest")
        some = np.sort(key.numpy().permutation(len(population))[:LOOKED_AT])
        drawn = population.at(some)
        structure, (seen,) = closest_in_structure(package.pixels, drawn), closest_in_features(package, [drawn], key)
        among = "" if len(some) == len(population) else f" among {len(some):,} of them"
        by_measure = {
            "correlation of pixels": Closest(near.correlation.astype(np.float64), near.row),
            f"structural similarity{among}": Closest(structure.similarity, some[structure.row]),
            f"correlation of features{among}": Closest(seen.similarity, some[seen.row]),
        }
        rows += [PairRow(title, measure, _pairs(package, population, found)) for measure, found in by_measure.items()]
    return sorted(rows, key=lambda row: row.measure)


def _pairs(package: Package, population: Population, found: Closest) -> list[Pair]:
    """Those most alike, most alike first."""
    alike = np.argsort(-found.similarity, kind="stable")[:PAIRS]
    rows, place = np.unique(found.row[alike], return_inverse=True)
    small = encoded(population.at(rows), package.stored_shape)[place]
    return [
        Pair(float(found.similarity[index]), package.pixels[index], own)
        for index, own in zip(alike, small, strict=True)
    ]
