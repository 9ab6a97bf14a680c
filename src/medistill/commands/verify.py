"""``verify``: is this package whole, unaltered and safe to open?"""

from __future__ import annotations

from pathlib import Path

from medistill.package.package import read_package
from medistill.types import Json


def verify(package: str | Path) -> Json:
    """Check everything about a package: hashes, names, sizes, pixels against the manifest.

    Raises:
        PackageError: the first thing found wrong.
    """
    found = read_package(package)
    return {
        "package": str(package),
        "package_id": found.identity,
        "valid": True,
        "files": len(found.manifest["files"]) + 1,
        "images": len(found.labels),
        "classes": list(found.class_names),
        "method": found.manifest["method"]["name"],
        "contains_real_images": found.manifest["contains_real_images"],
    }
