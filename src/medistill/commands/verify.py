"""``verify``: is this package whole, unaltered and safe to open?"""

from __future__ import annotations

from pathlib import Path

from medistill.aliases import Json
from medistill.package.guarantee import guaranteed
from medistill.package.package import read_package


def verify(package: str | Path) -> Json:
    """Check everything about a package: hashes, names, sizes, pixels against the manifest.

    Raises:
        PackageError: the first thing found wrong.
    """
    read = read_package(package)
    manifest = read.manifest
    return {
        "package": str(package),
        "package_id": read.identity,
        "valid": True,
        "files": len(manifest.files) + 1,
        "images": len(read),
        "task": manifest.task.kind,
        "classes": list(read.class_names),
        "method": manifest.method.name,
        "start": manifest.start,
        "contains_real_images": manifest.privacy.contains_real_images,
        "guarantee": guaranteed(manifest),
        "audits": [finding.model_dump(mode="json") for finding in manifest.audits],
    }
