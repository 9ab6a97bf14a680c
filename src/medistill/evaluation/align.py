"""Reading a data set the way a package needs it: its size, its channels, its class numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medistill.config import DataConfig
from medistill.data.dataset import Dataset, Split
from medistill.data.load import load
from medistill.data.preprocess import MINIMUM_SIDE
from medistill.data.split import complete
from medistill.errors import DataError, nearest
from medistill.keys import Key
from medistill.package.package import Package


def load_for(package: Package, on: str | Path, complete_splits: bool = True) -> tuple[Dataset, list[str]]:
    """Read a data set whose images may have any size, and number its classes like the package's.

    Args:
        package: what the data will be used with.
        on: the data set.
        complete_splits: split off val and test where the source has none. The package's own
            source is always split as it was for distilling, so that nobody tests on what was
            distilled.

    Returns:
        The data set, and notes on how classes were matched.

    Raises:
        DataError: it cannot be read, or its classes are not the package's.
    """
    config = data_config(package)
    raw = load(on, config, complete_splits=False)
    completed = complete(raw, Key(config.split_seed))
    if not is_source(package, completed) and MINIMUM_SIDE in package.preprocessing.size:
        completed = _not_enlarged(on, config, completed)
    if is_source(package, completed):
        flips = package.manifest["flips"]
        described = replace(completed.description, class_names=package.class_names, flips=flips)
        return Dataset(completed.splits, described), []
    return align(completed if complete_splits else raw, package.class_names)


def _not_enlarged(on: str | Path, config: DataConfig, enlarged: Dataset) -> Dataset:
    """The data as they were before folders of smaller images were brought to the package's size."""
    try:
        raw = load(on, config.model_copy(update={"size": None, "channels": None}), complete_splits=False)
    except DataError:  # of several sizes: they were brought to one for distilling too
        return enlarged
    return complete(raw, Key(config.split_seed))


def is_source(package: Package, dataset: Dataset) -> bool:
    """Whether the package was made from these very data."""
    return bool(dataset.fingerprint["sha256"] == package.manifest["data"]["fingerprint"])


def data_config(package: Package) -> DataConfig:
    """How to read data for a package: its images' size and channels, its seed of splits."""
    size, channels = package.preprocessing.size, package.preprocessing.channels
    seed = int(package.manifest["configuration"]["data"]["split_seed"])
    return DataConfig(size=size, channels=1 if channels == 1 else 3, split_seed=seed)


def align(dataset: Dataset, class_names: tuple[str, ...]) -> tuple[Dataset, list[str]]:
    """Renumber a data set's classes by name so that they mean what the package's mean.

    Names decide wherever the data set has names; it may have fewer classes than the
    package. Where one side has only numbers, the order is taken as the same, and a note
    says so.

    Raises:
        DataError: a class is not among the package's, the numbers of classes differ, a label
            is outside the classes, or an image has several labels.
    """
    own = dataset.description.class_names
    for name, split in dataset.splits.items():
        if split.labels.ndim != 1:
            raise DataError("each image has several labels", where=f"{dataset.description.name}, {name}")
        wrong = (split.labels < 0) | (split.labels >= len(own))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{name}_labels[{row}] is {split.labels[row]} ({int(wrong.sum())} images)",
                where=dataset.description.name,
                allowed=f"0 to {len(own) - 1}",
                remedy="correct the labels; they run from 0 to classes - 1 and occur in train",
            )
    numbers, notes = matched(own, class_names, dataset.description.name)
    return (dataset if own == class_names else renumbered(dataset, numbers, class_names)), notes


def matched(
    own: tuple[str, ...], class_names: tuple[str, ...], where: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The number among ``class_names`` of each own class, and notes on how they were matched.

    Raises:
        DataError: a class is not among them, or the numbers of classes differ where one side has no names.
    """
    if own == class_names:
        return np.arange(len(own)), []
    notes: list[str] = []
    numbered = [all(name.isdigit() for name in names) for names in (own, class_names)]
    if any(numbered) and not all(numbered):
        if len(own) != len(class_names):
            raise DataError(
                f"has {len(own)} classes without names, the package has {len(class_names)}",
                where=where,
                remedy="give the data class names (a class_names array in the npz, or class folders)",
            )
        notes.append("classes were matched by number, because one side has no class names")
        numbers = np.arange(len(own))
    else:
        folded = _folded(class_names, "the package")
        _folded(own, where)
        unknown = [name for name in own if _plain(name) not in folded]
        if unknown:
            raise DataError(
                f"class '{unknown[0]}' is not in the package ({len(unknown)} such)",
                where=where,
                allowed=", ".join(class_names),
            )
        numbers = np.array([folded[_plain(name)] for name in own])
        absent = [name for number, name in enumerate(class_names) if number not in numbers]
        if absent:
            notes.append(f"the data have no {', '.join(absent)}; metrics are over the other classes")
    return numbers, notes


def renamed(dataset: Dataset, mapping: Mapping[str, str | None]) -> Dataset:
    """Give classes other names; several may get one name, and images of a class mapped to None are left out.

    Raises:
        DataError: a name in the mapping is none of the data set's.
    """
    own = dataset.description.class_names
    unknown = [name for name in mapping if name not in own]
    if unknown:
        raise DataError(
            f"has no class '{unknown[0]}' to rename",
            where=dataset.description.name,
            remedy=nearest(unknown[0], own),
        )
    names = [mapping.get(name, name) for name in own]
    if "" in names:
        raise DataError("gives a class an empty name", where=dataset.description.name, remedy="null leaves it out")
    known = tuple(dict.fromkeys(name for name in names if name is not None))
    splits = {}
    for part, split in dataset.splits.items():
        kept = split.take(np.flatnonzero(np.array([names[label] is not None for label in split.labels], dtype=bool)))
        splits[part] = kept
    numbers = np.array([-1 if name is None else known.index(name) for name in names])
    return renumbered(Dataset(splits, dataset.description), numbers, known)


def _plain(name: str) -> str:
    """How names are compared: without case, "01" like "1"."""
    return str(int(name)) if name.isdecimal() else name.casefold().strip()


def _folded(names: tuple[str, ...], where: str) -> dict[str, int]:
    folded: dict[str, int] = {}
    for number, name in enumerate(names):
        if folded.setdefault(_plain(name), number) != number:
            raise DataError(f"has two classes called '{name}'", where=where, remedy="give them different names")
    return folded


def renumbered(dataset: Dataset, numbers: npt.NDArray[np.intp], class_names: tuple[str, ...]) -> Dataset:
    """Class ``i`` becomes class ``numbers[i]`` of ``class_names``."""
    splits = {
        name: Split(split.images, numbers[split.labels].astype(np.int64), split.patients)
        for name, split in dataset.splits.items()
    }
    return Dataset(splits, replace(dataset.description, class_names=class_names))
