"""Reading a data set the way a package needs it: its size, its channels, its class numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medistill.config import DataConfig
from medistill.data.dataset import Dataset, Split
from medistill.data.load import load
from medistill.errors import DataError
from medistill.package.package import Package


def load_for(package: Package, on: str | Path, complete_splits: bool = True) -> tuple[Dataset, list[str]]:
    """Read a data set whose images may have any size, and number its classes like the package's.

    Returns:
        The data set, and notes on how classes were matched.

    Raises:
        DataError: it cannot be read, or its classes are not the package's.
    """
    return align(load(on, data_config(package), complete_splits), package.class_names)


def data_config(package: Package) -> DataConfig:
    """Size and channels of the package's images, as settings for reading other data."""
    size, channels = package.preprocessing.size, package.preprocessing.channels
    return DataConfig(size=size, channels=1 if channels == 1 else 3)


def align(dataset: Dataset, class_names: tuple[str, ...]) -> tuple[Dataset, list[str]]:
    """Renumber a data set's classes by name so that they mean what the package's mean.

    Names decide wherever the data set has names; it may have fewer classes than the
    package. Where it has only numbers, its numbers are taken as the package's, and a note
    says so.

    Raises:
        DataError: a class is not among the package's, or the numbers of classes differ.
    """
    own = dataset.description.class_names
    if own == class_names:
        return dataset, []
    notes: list[str] = []
    if all(name.isdigit() for name in own) or all(name.isdigit() for name in class_names):
        if len(own) != len(class_names):
            raise DataError(
                f"has {len(own)} classes without names, the package has {len(class_names)}",
                where=dataset.description.name,
                remedy="give the data class names (a class_names array in the npz, or class folders)",
            )
        notes.append("classes were matched by number, because one side has no class names")
        numbers = np.arange(len(own))
    else:
        folded = {name.casefold(): number for number, name in enumerate(class_names)}
        unknown = [name for name in own if name.casefold() not in folded]
        if unknown:
            raise DataError(
                f"class '{unknown[0]}' is not in the package ({len(unknown)} such)",
                where=dataset.description.name,
                allowed=", ".join(class_names),
            )
        numbers = np.array([folded[name.casefold()] for name in own])
        absent = [name for number, name in enumerate(class_names) if number not in numbers]
        if absent:
            notes.append(f"the data have no {', '.join(absent)}; metrics are over the other classes")
    splits = {
        name: Split(split.images, numbers[split.labels].astype(np.int64), split.patients)
        for name, split in dataset.splits.items()
    }
    return Dataset(splits, replace(dataset.description, class_names=class_names)), notes
