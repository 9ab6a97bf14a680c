"""``report``: one page that tells what a package is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medistill.aliases import Json
from medistill.audits.audit import populations
from medistill.audits.checks.resemblance import nearest_images
from medistill.commands.evaluate import Measured, measure
from medistill.config import EvaluateConfig
from medistill.data.image import encoded
from medistill.data.preprocess import PreparedDataset
from medistill.data.sampling import draw_by_stratum
from medistill.distil.checkpoint import RunFolder
from medistill.files import require_apart, require_ours, require_writable, write_atomically
from medistill.keys import Key
from medistill.package.package import Package
from medistill.reporting.html import PAGE_MARK, Pair, ShownImages, render

SHOWN = 10
"""Real images of each class."""

PAIRS = 6
"""Pairs of a distilled image and the real one most like it."""


def report(
    package: str | Path,
    *,
    on: str | Path,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    progress: bool = False,
) -> Json:
    """Evaluate a package (what was evaluated before comes from the cache) and write the page.

    The page shows real training images beside the distilled ones, so it stays with the owner
    of the data.

    Args:
        package: folder or zip.
        on: the data set.
        out: HTML file; by default ``report.html`` in the run's folder beside the package.
        config: as for ``evaluate``.
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
    measured = measure(package, on, config or EvaluateConfig(), attach=False, progress=progress)
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
    pairs = _closest(package, prepared) if measured.result.data.same_as_distilled else ([], [])
    return ShownImages([train.pixels[rows] for rows in drawn], *pairs)


def _closest(package: Package, prepared: PreparedDataset) -> tuple[list[Pair], list[Pair]]:
    """The pairs most alike, with training images and with images that took no part, most alike first."""
    by_population: list[list[Pair]] = []
    members, others = populations(prepared)
    for population in (members, others.without(members.patients)):
        pairs: list[Pair] = []
        if len(population):
            near = nearest_images(package.pixels, population.pixels)
            starts = np.cumsum([0, *(len(part) for part in population.pixels)])
            for index in np.argsort(-near.correlation, kind="stable")[:PAIRS]:
                part = int(np.searchsorted(starts, near.row[index], side="right")) - 1
                real = population.pixels[part][near.row[index] - starts[part]]
                small = encoded(np.ascontiguousarray(real[None]), package.stored_shape)[0]
                pairs.append(Pair(float(near.correlation[index]), package.pixels[index], small))
        by_population.append(pairs)
    return by_population[0], by_population[1]
