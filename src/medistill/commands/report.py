"""``report``: one page that tells what a package is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medistill.commands.evaluate import measure
from medistill.config import EvaluateConfig
from medistill.data.preprocess import Part
from medistill.distil.checkpoint import RunFolder
from medistill.files import require_apart, require_ours, require_writable, write_atomically
from medistill.keys import Key
from medistill.reporting.html import PAGE_MARK, RealImages, render
from medistill.types import Json

SHOWN = 10


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
    real = _real_images(measured.prepared.train, measured.prepared.classes)
    page = render(measured.package, measured.result, real, folder.read_log(), measured.warnings)
    write_atomically(target, page)
    return {"report": str(target.resolve()), "evaluation": measured.result}


def _real_images(part: Part, classes: int) -> RealImages:
    chosen = []
    for label in range(classes):
        members = np.flatnonzero(part.labels == label)
        chosen.append(part.pixels[Key(0).child("shown", label).numpy().permutation(members)[:SHOWN]])
    return RealImages(chosen)
