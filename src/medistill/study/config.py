"""A study's file: which data, methods, sizes and seeds, how each package is evaluated, on which other sites."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from medistill.config import DataConfig, EvaluateConfig, Settings, build, read_yaml
from medistill.data.catalogue import parse_name
from medistill.errors import ConfigError, nearest

DATA_VARIABLE = "MEDISTILL_DATA"
PHANTOM = "phantom"


def _readable(name: str) -> str:
    if name and not (name.strip() and name.isprintable() and len(name) <= LONGEST):
        raise ValueError(f"{name[:40]!r} is no name; it needs 1 to {LONGEST} characters that can be printed")
    return name


LONGEST = 100
Name = Annotated[str, AfterValidator(_readable)]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


Ratio = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)]
Ipc = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
"""What the database can hold."""

# One value may stand for itself.
Ipcs = Annotated[tuple[Ipc, ...], BeforeValidator(_several)]
Ratios = Annotated[tuple[Ratio, ...], BeforeValidator(_several)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_several)]


class MethodEntry(Settings):
    """A method as ``distill`` is asked for it; a word alone is its name."""

    method: str = Field(description="a method's name, or default")
    preset: str | None = Field(None, description="a preset of it")
    settings: dict[str, Any] = Field(default_factory=dict, description="further settings, as for --set")
    name: Name = Field("", description="what tables call it")

    @property
    def title(self) -> str:
        """What tables call it: its name, or the method with its preset."""
        return self.name or " ".join(filter(None, (self.method, self.preset)))

    @field_validator("settings")
    @classmethod
    def _settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "data" in value:
            raise ValueError("how data are read is no setting of a method; say it at the data set, below data")
        for name, list_ in (("ipc", "ipc"), ("ratio", "ratio"), ("seed", "seeds")):
            if name in value:
                raise ValueError(f"{name} is no setting of a method; it is the study's, or a data set's, {list_}")
        return value


GridCell = tuple[MethodEntry, int | None, float | None, int]
"""A method, images per class or else the ratio, and a seed."""


class DataEntry(Settings):
    """A data set as the study sees it: a source, perhaps varied in its training images and classes."""

    source: str = Field(description="path (from the data folder), MedMNIST name, or phantom")
    name: Name = Field("", description="what tables call it; the source's own name if not given")
    group: Name = Field("", description="data of one origin share it, by default those of one source")
    data: DataConfig = Field(default_factory=DataConfig, description="how it is read")
    images: float = Field(1.0, gt=0, le=1, description="share of the training images of each class that are kept")
    classes: dict[str, str | None] = Field(
        default_factory=dict, description="classes renamed, merged by giving them one name, or left out (null)"
    )
    label_noise: float = Field(0.0, ge=0, lt=1, description="share of the training labels replaced by another class")
    variation_seed: int = Field(0, description="of what is left out and replaced")
    methods: tuple[MethodEntry, ...] | None = Field(None, min_length=1, description="instead of the study's")
    ipc: Ipcs | None = Field(None, min_length=1, description="instead of the study's")
    ratio: Ratios | None = Field(None, min_length=1, description="instead of the study's")
    seeds: Seeds | None = Field(None, min_length=1, description="instead of the study's")

    @property
    def varied(self) -> bool:
        """Whether anything but reading it as it is was asked for."""
        return bool(self.classes) or self.images < 1 or self.label_noise > 0

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return value if value is None else _entries(value, "method")


class Some(Settings):
    """Which packages of a data set are meant; all, where nothing is said."""

    methods: tuple[Name, ...] | None = Field(None, min_length=1, description="only these, as tables call them")
    ipc: Ipcs | None = Field(None, min_length=1, description="only these")
    ratio: Ratios | None = Field(None, min_length=1, description="only these")
    seeds: Seeds | None = Field(None, min_length=1, description="only these")

    def of(self, cells: Sequence[GridCell]) -> list[GridCell]:
        """Those of the cells that are meant.

        Raises:
            ConfigError: something is named that none of them has.
        """
        columns: dict[str, tuple[Collection[object] | None, list[object]]] = {
            "methods": (self.methods, [cell[0].title for cell in cells]),
            "ipc": (self.ipc, [cell[1] for cell in cells]),
            "ratio": (self.ratio, [cell[2] for cell in cells]),
            "seeds": (self.seeds, [cell[3] for cell in cells]),
        }
        for key, (named, values) in columns.items():
            available = [value for value in dict.fromkeys(values) if value is not None]
            for value in named or ():
                if value not in available:
                    raise ConfigError(
                        f"{value!r} is none that packages are made with", where=key,
                        allowed=", ".join(map(str, available)) or "none", remedy="or ask the data set for it too",
                    )  # fmt: skip
        meant = {key: [named is not None and v in named for v in values] for key, (named, values) in columns.items()}
        sized = self.ipc is not None or self.ratio is not None
        return [
            cell
            for cell, method, ipc, ratio, seed in zip(cells, *meant.values(), strict=True)
            if (method or self.methods is None) and (ipc or ratio or not sized) and (seed or self.seeds is None)
        ]


class Transfer(Some):
    """Packages of one data set, and what they are compared with, tested on another one's test images."""

    from_: str = Field(alias="from", description="name of the data trained on")
    to: str = Field(description="name of the data tested on")
    classes: dict[str, str | None] = Field(
        default_factory=dict,
        description="what the classes tested on are called in the data trained on; null: left out",
    )


class Pooled(Some):
    """Packages of several sites as one training set, beside each alone and all their data."""

    data: tuple[str, ...] = Field(min_length=2, description="names; the first one's classes count")
    classes: dict[str, dict[str, str | None]] = Field(
        default_factory=dict, description="by data set, what its classes are called in the first one"
    )


class StudyConfig(Settings):
    """A whole study."""

    name: Name = Field(min_length=1, description="of the study")
    data: tuple[DataEntry, ...] = Field(min_length=1)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    ipc: Ipcs = Field((), description="images per class")
    ratio: Ratios = Field((), description="distilled images per training image")
    seeds: Seeds = Field((0,), min_length=1)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    features: bool = Field(
        True, description="whether `predict` can learn from the runs, at some seconds for each data set and size"
    )
    transfer: tuple[Transfer, ...] = ()
    pooled: tuple[Pooled, ...] = ()

    @field_validator("data", mode="before")
    @classmethod
    def _data(cls, value: Any) -> Any:
        return _entries(value, "source")

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return _entries(value, "method")

    @model_validator(mode="after")
    def _named(self) -> StudyConfig:
        names = [entry.name or own_name(entry.source) for entry in self.data]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two data sets are called '{twice[0]}'; give one another name")
        for name in [n for t in self.transfer for n in (t.from_, t.to)] + [n for p in self.pooled for n in p.data]:
            if name not in names:
                raise ValueError(f"no data set of the study is called '{name}'; {nearest(name, names)}")
        for pooled in self.pooled:
            if len(set(pooled.data)) < len(pooled.data):
                raise ValueError(f"{', '.join(pooled.data)} are pooled, one of them twice; name each once")
            for name in pooled.classes:
                if name not in pooled.data:
                    raise ValueError(f"classes of '{name}', which is not pooled; {nearest(name, pooled.data)}")
        meant: dict[str, MethodEntry] = {}
        for methods in (self.methods, *(entry.methods or () for entry in self.data)):
            titles = [method.title for method in methods]
            for method in methods:
                # Tables and the indicator know methods by what they are called, wherever they are listed.
                same = meant.setdefault(method.title, method).model_copy(update={"name": method.name}) == method
                if not same or titles.count(method.title) > 1:
                    raise ValueError(f"two methods are called '{method.title}'; give one another name")
        if not self.ipc and not self.ratio and any(e.ipc is None and e.ratio is None for e in self.data):
            raise ValueError("neither ipc nor ratio says how many images to make")
        return self


def own_name(source: str) -> str:
    """What a source is called where nobody gave it a name: a file's stem, else the source itself."""
    return Path(source).stem if source.endswith(".npz") or os.sep in source else source


def _entries(value: Any, key: str) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [{key: item} if isinstance(item, str) else item for item in value]


def read_study(path: Path, data_folder: Path | None = None) -> StudyConfig:
    """Read a study's file and find its data.

    Relative paths are looked for in ``data_folder``, else in the folder that ``MEDISTILL_DATA`` names, else
    beside the file.

    Raises:
        ConfigError: unreadable, or a setting is unknown or wrong.
    """
    config = build(StudyConfig, read_yaml(path), str(path))
    named = os.environ.get(DATA_VARIABLE)
    folder = data_folder or Path(named or path.parent).expanduser()
    if not folder.is_dir():
        option = f"--data-folder {folder}" if data_folder is not None else f"{DATA_VARIABLE}={folder}"
        raise ConfigError("no such folder", where=option)
    entries = []
    for entry in config.data:
        place = folder / Path(entry.source).expanduser()
        try:
            there = place.exists()
            source = str(place.resolve()) if there else entry.source
        except OSError as problem:  # a name too long
            raise ConfigError(f"is no usable path ({problem.strerror})", where=f"{entry.source[:60]}...") from problem
        if not there and origin(source) != PHANTOM and parse_name(source) is None:
            raise ConfigError(
                "no such file or folder",
                where=place,
                remedy=f"name the folder of the data with --data-folder, or in {DATA_VARIABLE}",
            )
        name = entry.name or own_name(entry.source)
        try:
            _readable(name)
        except ValueError as problem:
            raise ConfigError(str(problem), where="data", remedy="give the data set another, with name") from problem
        entries.append(entry.model_copy(update={"source": source, "name": name}))
    return config.model_copy(update={"data": tuple(_grouped(entries))})


def _grouped(entries: list[DataEntry]) -> list[DataEntry]:
    """Entries with their origin: that which any entry of the same source names, else what the source tells. Versions
    of one source are of one origin, two files of one name are not.

    Raises:
        ConfigError: entries of one source name two.
    """
    origins = {entry.source: origin(entry.source) for entry in entries}
    registered = {source: name for source, name in origins.items() if parse_name(name) is not None}
    named: dict[str, DataEntry] = {}
    for entry in (entry for entry in entries if entry.group):
        first = named.setdefault(registered.get(entry.source, entry.source), entry)
        if first.group != entry.group:
            raise ConfigError(
                f"'{first.name}' is of the group '{first.group}', '{entry.name}' of '{entry.group}'", where="data",
                allowed="one group for all versions of one source", remedy="give both the same, or leave one out",
            )  # fmt: skip
    groups = []
    for entry in entries:
        name, key = origins[entry.source], registered.get(entry.source, entry.source)
        alike = [source for source, other in origins.items() if other == name and source != entry.source]
        if alike and name not in (PHANTOM, entry.source) and entry.source not in registered:
            name = _apart(entry.source, alike)
        groups.append(named[key].group if key in named else name)
    return [entry.model_copy(update={"group": g}) for entry, g in zip(entries, groups, strict=True)]


def _apart(source: str, others: list[str]) -> str:
    """A file's name with as many of its folders as tell it from others: where data lie is nobody else's concern."""
    parts, rest = Path(source).with_suffix("").parts, [Path(other).with_suffix("").parts for other in others]
    enough = next(n for n in range(1, len(parts) + 1) if all(parts[-n:] != other[-n:] for other in rest))
    return "/".join(parts[-enough:])[-LONGEST:]


def origin(source: str) -> str:
    """Who made the data, as far as the source's name tells: resolutions of a MedMNIST set are of one origin, and so
    are all phantoms.
    """
    parsed = parse_name(own_name(source))
    return parsed[0] if parsed else PHANTOM if source.split(":")[0] == PHANTOM else own_name(source)
