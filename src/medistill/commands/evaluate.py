"""``evaluate``: what a package is worth on a data set, beside random images and the full data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medistill.config import EvaluateConfig
from medistill.data.checks import require_usable
from medistill.data.dataset import Dataset
from medistill.data.preprocess import Prepared, prepare
from medistill.distil.checkpoint import RunFolder
from medistill.errors import ConfigError
from medistill.evaluation.align import data_config, is_source, load_for
from medistill.evaluation.protocol import compare
from medistill.package.package import Package, read_package, write_package
from medistill.progress import say
from medistill.runtime import device_name, device_peak, peak_memory_mb, prepare_torch
from medistill.types import Json

ATTACHED = (
    "arms", "recovery", "recovery_ci95", "recovery_above_chance", "recovery_above_chance_ci95",
    "gain_over_random", "gain_over_random_stored_alike", "chance", "details", "images", "test_images", "data",
    "recipe", "net", "transfer", "networks", "random_draws", "seed", "notes",
)  # fmt: skip
"""What of a result goes into a package: everything that the same command gives again, so no seconds."""


def evaluate(
    package: str | Path,
    *,
    on: str | Path,
    config: EvaluateConfig | None = None,
    attach: bool = False,
    progress: bool = False,
) -> Json:
    """Train networks on the package, on random images, on the full data, and compare them on test images.

    Args:
        package: folder or zip; what is read back from it is what is measured.
        on: data set with training and test images.
        config: recipe, number of networks and draws, seed.
        attach: write the results into the package's manifest and card.
        progress: show progress on standard error.

    Returns:
        ``arms.<arm>.<metric>.{mean,std,ci95}`` for the arms distilled, random, full and full_balanced, and
        random_stored_alike where the package stores images smaller or has soft labels;
        ``recovery`` and ``recovery_above_chance`` by metric; ``gain_over_random.<metric>.{mean,ci95}``,
        likewise ``gain_over_random_stored_alike`` or None; ``transfer.<net>`` with the same for further networks,
        but without full_balanced;
        ``compression.{images,bytes}`` as shares of the original; ``cost.{seconds,peak_memory_mb,device}``
        of this evaluation, with ``cost.distillation`` where it is known; details, curves and provenance.

    Raises:
        PackageError, DataError, ConfigError: one line each.
    """
    return measure(package, on, config or EvaluateConfig(), attach, progress).result


@dataclass(frozen=True)
class Measured:
    """An evaluation's result with what it was measured on, for the report."""

    result: Json
    package: Package
    prepared: Prepared
    warnings: list[str]


def measure(
    package: str | Path,
    on: str | Path,
    config: EvaluateConfig,
    attach: bool,
    progress: bool,
    sites: Mapping[str, Dataset] | None = None,
    keep_networks: bool = False,
) -> Measured:
    """As :func:`evaluate`, giving the package and the prepared data too; the last two as for ``compare``."""
    prepare_torch()
    started = time.monotonic()
    read = read_package(package)
    dataset, notes = load_for(read, on)
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
    result = comparison.as_json()
    result["package"] = {
        "path": str(package),
        "package_id": read.identity,
        "method": read.manifest["method"]["name"],
    }
    result["cost"] = {
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(),
        **device_peak(),
        "distillation": RunFolder(Path(package)).read_cost(),
    }
    if attach:
        kept = {key: result[key] for key in ATTACHED}
        read = write_package(Path(package).expanduser(), read.with_evaluation(kept))
        result["package"]["package_id"] = read.identity
    return Measured(result, read, prepared, warnings)
