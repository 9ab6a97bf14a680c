"""Reading a manifest that may come from anybody."""

from __future__ import annotations

import json
import math

from pydantic import ValidationError

from medistill.errors import PackageError
from medistill.files import canonical_json, pretty_json, sha256_text
from medistill.package.manifest import FORMAT, Manifest
from medistill.package.upgrade import upgraded

READ_VERSIONS = (1, 2)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest once everything about its form was checked; that of version 1 is brought to version 2.

    Args:
        content: bytes of ``manifest.json``.
        where: what to call it in errors.

    Raises:
        PackageError: not JSON, another format version, altered, or a field of the wrong kind.
    """
    try:
        manifest = json.loads(content, parse_constant=_refuse, parse_float=_finite)
        version = manifest["format_version"] if manifest["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise PackageError("is damaged or no package's", where=where) from problem
    if type(version) is not int or version not in READ_VERSIONS:
        raise PackageError(
            f"format version {version!r}", where=where, allowed=", ".join(map(str, READ_VERSIONS)),
            remedy="update medistill",
        )  # fmt: skip
    try:
        body = {k: v for k, v in manifest.items() if k != "package_id"}
        # The text must be the one written, so that not even a space can be changed unnoticed.
        whole = pretty_json(manifest).encode() == content
        genuine = whole and sha256_text(canonical_json(body)) == manifest.get("package_id")
    except (ValueError, RecursionError):  # a lone surrogate has no UTF-8
        genuine = False
    if not genuine:
        raise PackageError("was altered", where=where, remedy="ask the sender for the package again")
    try:
        if version == 1:
            manifest = upgraded(manifest)
        missing = sorted(set(Manifest.model_fields) - set(manifest))
        if missing:
            raise ValueError(f"'{missing[0]}' is missing")
        parsed = Manifest.model_validate(manifest)
        if parsed.images is None or len(parsed.package_id) != 64:
            raise ValueError("has no images")
        return parsed
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "its fields"
        raise PackageError(
            f"'{name}' is not what a package has there", where=where, allowed=first["msg"].lower()[:200]
        ) from problem
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise PackageError(f"its fields are not a package's ({str(problem)[:100]})", where=where) from problem


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
