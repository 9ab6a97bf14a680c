"""What a run of a study does with the tool's own commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from medistill import __version__
from medistill.aliases import Json
from medistill.commands.distill import distill
from medistill.commands.evaluate import measure
from medistill.config import DataConfig, EvaluateConfig
from medistill.data.align import align, matched, renamed
from medistill.data.dataset import Dataset
from medistill.data.preprocess import PreparedDataset, prepare
from medistill.distil.configuration import configured
from medistill.errors import DataError
from medistill.files import canonical_json, sha256_text, user_cache
from medistill.package.package import Package, read_package
from medistill.prediction.features import VERSION as FEATURES_VERSION
from medistill.prediction.features import PackageSpec, features
from medistill.prediction.representativeness import representativeness
from medistill.study.config import DataEntry, MethodEntry
from medistill.study.pooled import Site, compare_pooled
from medistill.study.variation import as_source, read_entry, read_planned
from medistill.tasks.task import Task

KEPT = (
    "arms", "recovery", "recovery_ci95", "recovery_above_baseline", "recovery_above_baseline_ci95",
    "gain_over_random",
    "gain_over_random_matched", "transfer", "robustness", "majority_baseline", "images", "test_images", "repeats",
    "random_draws", "architecture", "notes", "compression", "task",
)  # fmt: skip
"""What of an evaluation a study keeps."""


def make_package(entry: DataEntry, identity: str, specification: Json) -> tuple[Path, str, Json]:
    """Distil an entry's data as the run says; finds the package where it is made already.

    Packages are kept by what determines them, which how they are evaluated does not.

    Returns:
        The package, the source it was made from, and what ``distill`` said.
    """
    method = MethodEntry.model_validate(specification["method"])
    named = None if method.method == "default" else method.method
    size, seed = (specification["ipc"], specification["ratio"]), {"seed": specification["seed"]}
    dataset = read_planned(entry, identity)
    # What the run's identity leaves to the machine counts here, for the same package must come of it.
    _, resolved = configured(named, *size, method.preset, method.settings, seed)
    determined = {"data": identity, "distil": resolved.model_dump(mode="json"), "version": __version__}
    determined["read"] = entry.data.model_dump(mode="json")
    out = user_cache() / "study-packages" / sha256_text(canonical_json(determined))[:32] / "package"
    out.parent.mkdir(parents=True, exist_ok=True)
    source, data = as_source(entry, dataset)
    with FileLock(out.with_name("lock")):
        made = distill(
            source,
            out=out,
            method=named,
            preset=method.preset,
            ipc=specification["ipc"],
            ratio=specification["ratio"],
            seed=specification["seed"],
            # As the record says, which knows no image's size.
            settings={**method.settings, "factor": resolved.factor, "data": data.model_dump(mode="json")},
        )
    return out, source, made


def distilled(specification: Json) -> Json:
    """Distil and evaluate."""
    entry = DataEntry.model_validate(specification["entry"])
    package, source, made = make_package(entry, specification["data_identity"], specification)
    config = EvaluateConfig.model_validate(specification["evaluate"])
    keep = specification["keep_networks"]
    measured = measure(package, source, config, attach=False, progress=False, keep_networks=keep)
    result = measured.result.as_json()
    kept = {key: result[key] for key in KEPT}
    kept["representativeness"] = None
    if measured.prepared.preprocessing.image.dimensions == 2:  # its spaces are of pictures
        kept["representativeness"] = representativeness(
            measured.package.data, measured.prepared.train, measured.prepared.task
        )
    kept["validation"] = _validation(measured.result.curves["distilled"])
    kept |= {"start": made["start"], "audits": made["audits"]}
    kept["dimensions"] = measured.prepared.preprocessing.image.dimensions
    wanted = specification["features"]
    kept |= _features(measured.prepared, specification) if wanted else {"features": None, "features_version": None}
    return {**kept, "bytes": made["bytes"], "package_id": made["package_id"], "cost": made["cost"]}


def features_of(specification: Json) -> Json:
    """The features alone that :func:`distilled` computes beside what it measures."""
    entry = DataEntry.model_validate(specification["entry"])
    return _features(prepare(read_planned(entry, specification["data_identity"]), entry.data), specification)


def _features(prepared: PreparedDataset, specification: Json) -> Json:
    try:
        computed = features(prepared, {"": PackageSpec.of(specification["determined"]["distil"])})[""]
    except DataError:  # too few images to hold some out; the run stands without them
        computed = None
    return {"features": computed, "features_version": FEATURES_VERSION}


def _validation(curves: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Mean primary metric of the trained networks on validation images, the last of each learning curve; None
    without such images.
    """
    return float(np.mean([curve[-1][2] for curve in curves])) if all(len(curve) for curve in curves) else None


def transfer(specification: Json) -> Json:
    """Ask the networks of a run about another site's test images; they are in the cache where that run is done."""
    entry = DataEntry.model_validate(specification["entry"])
    package, source, made = make_package(entry, specification["data_identity"], specification)
    config = EvaluateConfig.model_validate(specification["evaluate"])
    sites = {specification["site"]["entry"]["name"]: _site(specification["site"], entry)}
    result = measure(package, source, config, attach=False, progress=False, sites=sites).result.as_json()
    kept = {key: result[key] for key in ("sites", "images", "repeats", "random_draws", "architecture", "notes")}
    return {**kept, "bytes": made["bytes"], "cost": made["cost"]}


def _site(site: Json, trained: DataEntry) -> Dataset:
    """Another site's data with the classes of the data trained on."""
    entry = DataEntry.model_validate(site["entry"])
    dataset = renamed(read_planned(entry, site["identity"]), site["classes"])
    return align(dataset, read_entry(trained).task)[0]


def pooled(specification: Json) -> Json:
    """Several sites' packages as one training set; classes are the first site's."""
    first, *_ = entries = [DataEntry.model_validate(part["entry"]) for part in specification["parts"]]
    task = read_entry(first).task
    sites: list[Site] = []
    cost = []
    for part, entry in zip(specification["parts"], entries, strict=True):
        path, _, made = make_package(entry, part["identity"], specification)
        package = read_package(path)
        like = (sites[0].prepared.preprocessing if sites else package.preprocessing).image
        how = DataConfig(
            size=like.shape, channels=1 if like.channels == 1 else 3, steps=entry.data.steps, bits=entry.data.bits
        )
        prepared = prepare(align(read_entry(entry), task)[0], how)
        sites.append(Site(entry.name, _numbered(package, task), prepared))
        cost.append(made["cost"])
    config = EvaluateConfig.model_validate(specification["evaluate"])
    seconds = sum(c["seconds"] for c in cost)
    peak = max(c["peak_memory_mb"] for c in cost)
    return {
        **compare_pooled(sites, task, config),
        "bytes": sum(site.package.size_bytes for site in sites),
        "cost": {**cost[0], "seconds": seconds, "peak_memory_mb": peak},
    }


def _numbered(package: Package, task: Task) -> Package:
    """A package whose outputs have the numbers of the same names in another task."""
    if package.task == task:
        return package
    manifest = package.manifest
    numbers, _ = matched(package.class_names, task.class_names, manifest.provenance.data.name)

    def wide(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        widened = np.zeros((len(values), task.outputs), dtype=values.dtype)
        widened[:, numbers] = values
        return widened

    targets = wide(package.targets)
    # Strata follow from what each image stands for; of overlapping ones any does for counting.
    strata = np.array([int(np.flatnonzero(row)[0]) for row in task.membership(targets)])
    section = manifest.task.model_copy(update={"kind": task.kind, "class_names": list(task.class_names)})
    soft = None if package.soft_labels is None else wide(package.soft_labels)
    return replace(
        package,
        targets=targets,
        strata=strata,
        soft_labels=soft,
        manifest=manifest.model_copy(update={"task": section}),
    )
