"""Packages as somebody would forge them who knows the format."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medistill.errors import PackageError
from medistill.files import canonical_json, sha256_text
from medistill.package.container import Files, zip_bytes
from medistill.package.package import read_package


def sealed(files: Files, manifest: dict[str, Any] | None = None) -> Files:
    """The files with every hash as it should be; with another manifest than their own, if given."""
    manifest = json.loads(files["manifest.json"]) if manifest is None else manifest
    manifest = {k: v for k, v in manifest.items() if k != "package_id"}
    if isinstance(manifest.get("files"), dict):
        manifest["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "manifest.json"}
    try:
        manifest["package_id"] = sha256_text(canonical_json(manifest))
        text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False)
        return {**files, "manifest.json": (text + "\n").encode()}
    except (ValueError, UnicodeEncodeError):
        text = json.dumps({**manifest, "package_id": "0" * 64}, sort_keys=True, indent=2)
        return {**files, "manifest.json": (text + "\n").encode()}


def refused(folder: Path, files: Files, what: object = "") -> None:
    """Reading these files as a package is refused in one line."""
    forged = folder / "forged.zip"
    forged.write_bytes(zip_bytes(files))
    with pytest.raises(PackageError) as caught:
        read_package(forged)
        pytest.fail(f"was accepted: {what}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def npy(array: object) -> bytes:
    """A ``.npy`` file's bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def npz(members: dict[str, bytes]) -> bytes:
    """A compressed zip of those files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of hard labels and exclusive classes as format version 1 had it."""
    image, images, method = manifest["image"], manifest["images"], manifest["method"]
    provenance, privacy = manifest["provenance"], manifest["privacy"]
    data, configuration = provenance["data"], dict(provenance["configuration"])
    learned = {("optimiser" if k == "name" else k): v for k, v in method["optimiser"].items() if k != "schedule"}
    settings = {k: 0 if v is None else v for k, v in method["settings"].items() if k != "stem"} | learned
    recipe = dict(configuration["labels"]["recipe"])
    for old, new in (("least_steps", "min_steps"), ("most_steps", "max_steps"), ("batch", "batch_size")):
        recipe[old] = recipe.pop(new)
    configuration["labels"] = {**configuration["labels"], "recipe": recipe}
    configuration["method"] = {"name": method["name"], "version": method["version"], **settings}
    del configuration["optimiser"]
    return {
        "format": manifest["format"],
        "format_version": 1,
        "created_by": {"medistill": provenance["medistill"]},
        "class_names": manifest["task"]["class_names"],
        "images": {
            "count": images["count"], "per_class": images["per_stratum"], "folders": images["folders"],
            "stored_size": image["stored_shape"], "labels": images["labels"],
        },
        "preprocessing": {
            "size": image["shape"], **{k: image[k] for k in ("channels", "window", "mean", "std", "dtype")},
        },
        "flips": image["flips"],
        "method": {**{k: method[k] for k in ("name", "title", "bibtex", "version")}, **settings},
        "configuration": configuration,
        "seed": provenance["seed"],
        "data": {
            **{k: data[k] for k in ("name", "fingerprint", "training_images", "licence", "source", "notes")},
            "per_class": data["per_stratum"],
        },
        "contains_real_images": privacy["contains_real_images"],
        "starts_from_real_images": privacy["starts_from_real_images"],
        "evaluation": None,
        "files": manifest["files"],
        "package_id": manifest["package_id"],
    }  # fmt: skip
