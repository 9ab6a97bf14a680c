"""``evaluate``: what a package is worth on a data set, beside random images and the full data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medistill.aliases import Json
from medistill.config import EvaluateConfig
from medistill.data.checks import require_usable
from medistill.data.dataset import Dataset
from medistill.data.preprocess import PreparedDataset, prepare
from medistill.distil.checkpoint import RunFolder
from medistill.errors import ConfigError
from medistill.evaluation.protocol import compare
from medistill.nets.hardware import device_name
from medistill.package.package import Package, read_package, write_package
from medistill.package.results import EvaluationResult
from medistill.package.source import data_config, is_source, load_for
from medistill.progress import say
from medistill.runtime import device_peak, peak_memory_mb, prepare_torch


def evaluate(
    package: str | Path,
    *,
    on: str | Path,
    config: EvaluateConfig | None = None,
    attach: bool = False,
    classes: Mapping[str, str | None] | None = None,
    progress: bool = False,
) -> Json:
    """Train networks on the package, on random images, on the full data, and compare them on test images.

    Args:
        package: folder or zip; what is read back from it is what is measured.
        on: data set with training and test images.
        config: recipe, number of networks and draws, seed.
        attach: write the results into the package's manifest and card.
        classes: what the data's classes are called in the package, by the data's names; None leaves one out.
        progress: show progress on standard error.

    Returns:
        ``arms.<arm>.<metric>.{mean,std,ci95}`` for the arms distilled, random, full and full_balanced, and
        random_matched where the package stores images smaller or has soft labels; metrics are those of the task;
        ``recovery`` and ``recovery_above_baseline`` by metric; ``gain_over_random.<metric>.{mean,ci95}`` (``std`` is
        None), likewise ``gain_over_random_matched`` or None; ``transfer.<architecture>`` with the same for further
        networks, but without full_balanced;
        ``compression.{images,bytes}`` as shares of the original; ``cost.{seconds,peak_memory_mb,device}``
        of this evaluation, with ``cost.distillation`` where it is known; details, curves and provenance.

    Raises:
        PackageError, DataError, ConfigError: one line each.
    """
    return measure(package, on, config or EvaluateConfig(), attach, progress, classes=classes).result.as_json()


@dataclass(frozen=True)
class Measured:
    """An evaluation's result with what it was measured on, for the report."""

    result: EvaluationResult
    package: Package
    prepared: PreparedDataset
    warnings: list[str]


def measure(
    package: str | Path,
    on: str | Path,
    config: EvaluateConfig,
    attach: bool,
    progress: bool,
    sites: Mapping[str, Dataset] | None = None,
    keep_networks: bool = False,
    classes: Mapping[str, str | None] | None = None,
) -> Measured:
    """As :func:`evaluate`, with package and prepared data; ``sites`` and ``keep_networks`` as for ``compare``."""
    prepare_torch()
    started = time.monotonic()
    read = read_package(package)
    dataset, notes = load_for(read, on, classes=classes)
    if attach and not is_source(read, dataset):
        raise ConfigError(
            "are not the data that the package was made from",
            where=on,
            remedy="results on other data do not belong into it; leave --attach out",
        )
    warnings = [f"{p.kind}: {p.found}" for p in require_usable(dataset, absent_classes=True)]
    for warning in warnings:
        say(f"warning: {warning}", progress)
    prepared = prepare(dataset, data_config(read))
    comparison = compare(read, prepared, config, notes, progress, sites, keep_networks)
    result = comparison.result()
    if attach:
        read = write_package(Path(package).expanduser(), read.with_evaluation(result.attached()))
    manifest = read.manifest
    provenance = {
        "path": str(package),
        "package_id": read.identity,
        "method": manifest.method.name,
        "start": manifest.start,
    }
    cost = {
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(),
        **device_peak(),
        "distillation": RunFolder(Path(package)).read_cost(),
    }
    return Measured(result.model_copy(update={"package": provenance, "cost": cost}), read, prepared, warnings)
