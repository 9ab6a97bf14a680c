"""What a manifest must look like; a package comes from strangers, so nothing in it is taken on trust."""

from __future__ import annotations

import json
import math
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from medistill.config import LabelConfig
from medistill.errors import PackageError
from medistill.files import canonical_json, pretty_json, sha256_text
from medistill.types import Json

FORMAT = "medistill-package"
FORMAT_VERSION = 1
LARGEST_COUNT = 10_000_000
"""Images and classes that are believed at most."""


def _safe_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/" or set(name) & set("\\:\0"):
        raise ValueError(f"'{name}' is no path below the package")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("unprintable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Folder = Annotated[str, Field(pattern=r"^[0-9]+(_[a-z0-9-]+)?$")]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Intensity = Annotated[float, Field(ge=-1e12, le=1e12)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=1)]
"""Preprocessing makes none under 1/255."""


class _Section(BaseModel):
    """Unknown keys are kept: a later release may add some that this one need not understand."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Images(_Section):
    count: Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
    per_class: list[Count]
    folders: list[Folder]
    stored_size: Annotated[list[Annotated[int, Field(ge=8, le=4096)]], Field(min_length=2, max_length=2)]
    labels: Literal["hard", "soft"]


class _Preprocessing(_Section):
    size: Annotated[list[Annotated[int, Field(ge=16, le=4096)]], Field(min_length=2, max_length=2)]
    channels: Annotated[int, Field(ge=1, le=3)]
    window: Annotated[list[Intensity], Field(min_length=2, max_length=2)]
    mean: list[Mean]
    std: list[Deviation]
    dtype: Name

    @model_validator(mode="after")
    def _one_per_channel(self) -> _Preprocessing:
        if (
            self.channels == 2
            or not len(self.mean) == len(self.std) == self.channels
            or self.window[0] >= self.window[1]
        ):
            raise ValueError("statistics that do not fit the channels")
        return self


class _Method(_Section):
    name: Name
    title: str
    bibtex: str
    version: int


class _Split(_Section):
    split_seed: int


class _Labels(_Section):
    teachers: int
    balance: bool
    calibrate: bool
    temperature: float
    recipe: dict[str, Any]

    @model_validator(mode="after")
    def _can_be_followed(self) -> _Labels:
        LabelConfig.model_validate({name: getattr(self, name) for name in LabelConfig.model_fields})
        return self


class _Configuration(_Section):
    data: _Split
    factor: Annotated[int, Field(ge=1, le=8)]
    labels: _Labels


class _Data(_Section):
    name: str
    fingerprint: Sha256
    training_images: Count
    per_class: list[Count]
    licence: str
    source: str
    notes: list[str]


class _Creator(_Section):
    medistill: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal["medistill-package"]
    format_version: int
    created_by: _Creator
    class_names: Annotated[list[Name], Field(min_length=1, max_length=65535)]
    images: _Images
    preprocessing: _Preprocessing
    flips: Literal["none", "horizontal", "both"]
    method: _Method
    configuration: _Configuration
    seed: int
    data: _Data
    contains_real_images: bool
    starts_from_real_images: bool
    evaluation: dict[str, Any] | None
    files: dict[Annotated[str, AfterValidator(_safe_name)], Sha256]
    package_id: Sha256

    @model_validator(mode="after")
    def _one_per_class(self) -> _Manifest:
        classes = len(self.class_names)
        lengths = {len(self.images.per_class), len(self.images.folders), len(self.data.per_class)}
        if lengths != {classes} or sum(self.images.per_class) != self.images.count:
            raise ValueError("counts that do not fit the classes")
        if len(set(self.class_names)) != classes or len(set(self.images.folders)) != classes:
            raise ValueError("a class twice")
        factor = self.configuration.factor
        if self.images.stored_size != [n // factor for n in self.preprocessing.size]:
            raise ValueError("images of a size that does not follow from the factor")
        return self


def parse_manifest(content: bytes, where: str) -> Json:
    """The manifest's content once everything about its form was checked.

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
    if type(version) is not int or version != FORMAT_VERSION:
        raise PackageError(
            f"format version {version!r}", where=where, allowed=str(FORMAT_VERSION), remedy="update medistill"
        )
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
        _Manifest.model_validate(manifest)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "its fields"
        raise PackageError(
            f"'{name}' is not what a package has there", where=where, allowed=first["msg"].lower()[:200]
        ) from problem
    return dict(manifest)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
