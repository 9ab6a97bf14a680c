"""What a run of a study does with the tool's own commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from medistill import __version__
from medistill.commands.distill import configured, distill
from medistill.commands.evaluate import measure
from medistill.config import DataConfig, EvaluateConfig
from medistill.data.dataset import Dataset
from medistill.data.preprocess import Prepared, prepare
from medistill.errors import DataError
from medistill.evaluation.align import align, matched, renamed
from medistill.files import canonical_json, sha256_text, user_cache
from medistill.package.package import Package, read_package
from medistill.prediction.features import VERSION as FEATURES_VERSION
from medistill.prediction.features import Wanted, features
from medistill.prediction.representativeness import representativeness
from medistill.study.config import DataEntry, MethodEntry
from medistill.study.pooled import Site, compare_pooled
from medistill.study.variation import as_source, read_entry, read_planned
from medistill.types import Json

KEPT = (
    "arms", "recovery", "recovery_ci95", "recovery_above_chance", "recovery_above_chance_ci95", "gain_over_random",
    "gain_over_random_stored_alike", "transfer", "robustness", "chance", "images", "test_images", "networks",
    "random_draws", "net", "notes", "compression",
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
    told = {"data": identity, "distil": resolved.model_dump(mode="json"), "version": __version__}
    told["read"] = entry.data.model_dump(mode="json")
    out = user_cache() / "study-packages" / sha256_text(canonical_json(told))[:32] / "package"
    out.parent.mkdir(parents=True, exist_ok=True)
    source, data = as_source(entry, dataset)
    with FileLock(out.with_name("lock")):
        said = distill(
            source,
            out=out,
            method=named,
            preset=method.preset,
            ipc=specification["ipc"],
            ratio=specification["ratio"],
            seed=specification["seed"],
            settings={**method.settings, "data": data.model_dump(mode="json")},
        )
    return out, source, said


def distilled(specification: Json) -> Json:
    """Distil and evaluate."""
    entry = DataEntry.model_validate(specification["entry"])
    package, source, said = make_package(entry, specification["data_identity"], specification)
    config = EvaluateConfig.model_validate(specification["evaluate"])
    keep = specification["keep_networks"]
    measured = measure(package, source, config, attach=False, progress=False, keep_networks=keep)
    kept = {key: measured.result[key] for key in KEPT}
    kept["representativeness"] = representativeness(
        measured.package.part, measured.prepared.train, measured.prepared.classes
    )
    kept["validation"] = _validation(measured.result["curves"]["distilled"])
    wanted = specification["features"]
    kept |= _features(measured.prepared, specification) if wanted else {"features": None, "features_version": None}
    return {**kept, "bytes": said["bytes"], "package_id": said["package_id"], "cost": said["cost"]}


def features_of(specification: Json) -> Json:
    """The features alone that :func:`distilled` computes beside what it measures."""
    entry = DataEntry.model_validate(specification["entry"])
    return _features(prepare(read_planned(entry, specification["data_identity"]), entry.data), specification)


def _features(prepared: Prepared, specification: Json) -> Json:
    try:
        found = features(prepared, {"": Wanted.of(specification["determined"]["distil"])})[""]
    except DataError:  # too few images to hold some out; the run stands without them
        found = None
    return {"features": found, "features_version": FEATURES_VERSION}


def _validation(curves: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Mean balanced accuracy of the trained networks on validation images, the last of each learning curve; None
    without such images.
    """
    return float(np.mean([curve[-1][2] for curve in curves])) if all(len(curve) for curve in curves) else None


def transfer(specification: Json) -> Json:
    """Ask the networks of a run about another site's test images; they are in the cache where that run is done."""
    entry = DataEntry.model_validate(specification["entry"])
    package, source, said = make_package(entry, specification["data_identity"], specification)
    config = EvaluateConfig.model_validate(specification["evaluate"])
    sites = {specification["site"]["entry"]["name"]: _site(specification["site"], entry)}
    result = measure(package, source, config, attach=False, progress=False, sites=sites).result
    told = {key: result[key] for key in ("sites", "images", "networks", "random_draws", "net", "notes")}
    return {**told, "bytes": said["bytes"], "cost": said["cost"]}


def _site(told: Json, trained: DataEntry) -> Dataset:
    """Another site's data with the classes of the data trained on."""
    entry = DataEntry.model_validate(told["entry"])
    dataset = renamed(read_planned(entry, told["identity"]), told["classes"])
    return align(dataset, read_entry(trained).description.class_names)[0]


def pooled(specification: Json) -> Json:
    """Several sites' packages as one training set; classes are the first site's."""
    first, *_ = entries = [DataEntry.model_validate(told["entry"]) for told in specification["parts"]]
    class_names = read_entry(first).description.class_names
    sites: list[Site] = []
    cost = []
    for told, entry in zip(specification["parts"], entries, strict=True):
        path, _, said = make_package(entry, told["identity"], specification)
        package = read_package(path)
        like = sites[0].prepared.preprocessing if sites else package.preprocessing
        how = DataConfig(size=like.size, channels=1 if like.channels == 1 else 3)
        prepared = prepare(align(read_entry(entry), class_names)[0], how)
        sites.append(Site(entry.name, _numbered(package, class_names), prepared))
        cost.append(said["cost"])
    config = EvaluateConfig.model_validate(specification["evaluate"])
    seconds = sum(c["seconds"] for c in cost)
    peak = max(c["peak_memory_mb"] for c in cost)
    return {
        **compare_pooled(sites, len(class_names), config),
        "bytes": sum(site.package.size_bytes for site in sites),
        "cost": {**cost[0], "seconds": seconds, "peak_memory_mb": peak},
    }


def _numbered(package: Package, class_names: tuple[str, ...]) -> Package:
    """A package whose classes have the numbers of the same names in ``class_names``."""
    if package.class_names == class_names:
        return package
    numbers, _ = matched(package.class_names, class_names, package.manifest["data"]["name"])
    soft = package.soft_labels
    if soft is not None:
        wide = np.zeros((len(soft), len(class_names)), dtype=soft.dtype)
        wide[:, numbers] = soft
        soft = wide
    manifest = {**package.manifest, "class_names": list(class_names)}
    return replace(package, labels=numbers[package.labels], soft_labels=soft, manifest=manifest)
