"""From the names and places of format version 1 to those of version 2.

What was published under old names, packages and the study's database, is read through here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from medistill.aliases import Json
from medistill.config import RENAMED, OptimiserConfig
from medistill.package.image_section import explained
from medistill.tasks.task import exclusive_kind

VERSION_1 = frozenset({
    "format", "format_version", "created_by", "class_names", "images", "preprocessing", "flips", "method",
    "configuration", "seed", "data", "contains_real_images", "starts_from_real_images", "evaluation", "files",
    "package_id",
})  # fmt: skip
"""Fields of a manifest of version 1."""

RECIPE = {old: RENAMED[old] for old in ("least_steps", "most_steps", "batch")}
RESULT = {
    "gain_over_random_stored_alike": "gain_over_random_matched",
    "recovery_above_chance": "recovery_above_baseline",
    "recovery_above_chance_ci95": "recovery_above_baseline_ci95",
    "chance": "majority_baseline",
    "net": "architecture",
    "networks": "repeats",
}
ARM = {"random_stored_alike": "random_matched"}
AUTOMATIC = ("iterations", "outer_loops", "inner_loops", "depth")
"""Settings of methods that were 0 where they were automatic."""

OPTIMISER = {"optimiser": "name", "learning_rate": "learning_rate", "momentum": "momentum"}
"""Settings of methods that are the optimiser's now."""


def rekeyed(value: Json, names: dict[str, str]) -> Json:
    """The same with other keys."""
    return {names.get(key, key): item for key, item in value.items()}


def upgraded_recipe(recipe: Json) -> Json:
    """A training recipe's settings."""
    return rekeyed(recipe, RECIPE)


def upgraded_evaluate(config: Json) -> Json:
    """Settings of an evaluation."""
    settings = rekeyed(config, {"nets": "architectures", "networks": "repeats"})
    return {**settings, "recipe": upgraded_recipe(settings["recipe"])} if "recipe" in settings else settings


def upgraded_distil(config: Json) -> Json:
    """A configuration of distilling: the optimiser apart from the method, nothing where a value is automatic."""
    settings = dict(config)
    if "method" in config and "optimiser" not in config:
        method, optimiser = upgraded_method(config["method"])
        settings |= {"method": method, "optimiser": optimiser}
    if "labels" in config:
        labels = dict(config["labels"])
        settings["labels"] = {**labels, "recipe": upgraded_recipe(labels["recipe"])} if "recipe" in labels else labels
    return settings


def upgraded_method(settings: Json) -> tuple[Json, Json]:
    """A method's settings and those of the optimiser, which were among them."""
    optimiser = {new: settings[old] for old, new in OPTIMISER.items() if old in settings}
    if not optimiser.get("learning_rate", 1):  # 0 was automatic; no momentum is none
        optimiser["learning_rate"] = None
    method = {key: value for key, value in settings.items() if key not in OPTIMISER}
    coreset = method.get("iterations") == 0 and "start" not in method
    for key in AUTOMATIC:
        if key in method and not method[key]:
            method[key] = None
    if coreset:
        method.pop("iterations", None)
        optimiser = {}
    elif optimiser:
        optimiser["schedule"] = "constant"  # there was no other
    return method, dict.fromkeys(OptimiserConfig.model_fields) | optimiser


def upgraded_scores(scores: Json) -> Json:
    """Scores of one kind of network."""
    fields = rekeyed(scores, RESULT)
    for key in ("arms", "details", "images", "curves"):
        if isinstance(fields.get(key), dict):
            fields[key] = rekeyed(fields[key], ARM)
    for key in ("transfer", "sites"):
        if isinstance(fields.get(key), dict):
            fields[key] = {name: upgraded_scores(nested) for name, nested in fields[key].items()}
    if isinstance(fields.get("details"), dict):
        fields["details"] = {arm: {"by_class": {}, **details} for arm, details in fields["details"].items()}
    return fields


def upgraded_result(result: Json, class_names: list[str]) -> Json:
    """A whole evaluation; those of version 1 are of classes that exclude each other."""
    fields = upgraded_scores(result)
    fields.setdefault("task", exclusive_kind(len(class_names)))
    fields.setdefault("class_names", class_names)
    fields.setdefault("primary", "balanced_accuracy")
    if "recipe" in fields:
        fields["recipe"] = upgraded_recipe(fields["recipe"])
    return fields


def upgraded(manifest: Json) -> Json:
    """A manifest of version 1 as one of version 2.

    Raises:
        KeyError, TypeError, ValueError: it lacks what every manifest of version 1 has, or has more.
    """
    unknown = sorted(set(manifest) - VERSION_1)
    if unknown:
        raise ValueError(f"'{unknown[0][:40]}' is no field of version 1")
    names = manifest["class_names"]
    how, data, images = manifest["preprocessing"], manifest["data"], manifest["images"]
    named = manifest["method"]
    settings, optimiser = upgraded_method(
        {k: v for k, v in named.items() if k not in ("name", "title", "bibtex", "version", "kind")}
    )
    real = manifest["contains_real_images"]
    kind = "coreset" if "start" not in settings and real else "distillation"
    evaluation = manifest["evaluation"]
    starts: Any = "real" if manifest["starts_from_real_images"] else "noise"
    return {
        "format": manifest["format"],
        "format_version": 2,
        "task": {"kind": exclusive_kind(len(names)), "class_names": names},
        "image": {
            "channels": how["channels"], "shape": how["size"], "stored_shape": images["stored_size"],
            "dtype": how["dtype"], "window": how["window"], "spacing": None, "mean": how["mean"],
            "std": how["std"], "flips": manifest["flips"], "explained": explained(255),
        },
        "images": {
            "count": images["count"], "per_stratum": images["per_class"], "folders": images["folders"],
            "labels": images["labels"],
        },
        "method": {
            "name": named["name"], "title": named["title"], "kind": named.get("kind", kind),
            "version": named["version"], "bibtex": named["bibtex"], "settings": settings,
            "optimiser": None if kind == "coreset" else optimiser, "steps": None,
        },
        "start": starts,
        "privacy": {
            "contains_real_images": real, "starts_from_real_images": manifest["starts_from_real_images"],
            "guarantee": None, "queries": [],
        },
        "audits": [],
        "evaluation": None if evaluation is None else upgraded_result(evaluation, names),
        "provenance": {
            "data": {
                "name": data["name"], "fingerprint": data["fingerprint"],
                "training_images": data["training_images"], "per_stratum": data["per_class"],
                "licence": data["licence"], "source": data["source"], "notes": data["notes"],
            },
            "configuration": upgraded_distil(manifest["configuration"]),
            "seed": manifest["seed"],
            "medistill": manifest["created_by"]["medistill"],
        },
        "files": manifest["files"],
        "package_id": manifest["package_id"],
    }  # fmt: skip
