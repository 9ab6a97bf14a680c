"""Numbering a data set's classes so that they mean what another's mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medistill.data.dataset import Dataset
from medistill.errors import ConfigError, DataError, nearest
from medistill.tasks.task import Task, exclusive_kind, make_task


def align(dataset: Dataset, task: Task) -> tuple[Dataset, list[str]]:
    """Renumber a data set's classes by name so that they mean what the other task's mean.

    Names decide wherever the data set has names; it may have fewer classes. Where one side has only numbers, the
    order is taken as the same, and a note says so.

    Raises:
        DataError: a class is not among the other's, the numbers of classes differ, or one side has classes that
            exclude each other and the other findings that do not.
    """
    if dataset.task.exclusive != task.exclusive:
        raise DataError(
            f"are a {dataset.task.title}", where=dataset.description.name,
            allowed=f"a {task.title}, as the package is",
        )  # fmt: skip
    numbers, notes = matched(dataset.task.class_names, task.class_names, dataset.description.name)
    return (dataset if dataset.task == task else renumbered(dataset, numbers, task)), notes


def matched(
    data_names: tuple[str, ...], class_names: tuple[str, ...], where: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The number among ``class_names`` of each class of the data, and notes on how they were matched.

    Raises:
        DataError: a class is not among them, or the numbers of classes differ where one side has no names.
    """
    if data_names == class_names:
        return np.arange(len(data_names)), []
    notes: list[str] = []
    numbered = [all(name.isdigit() for name in names) for names in (data_names, class_names)]
    if any(numbered) and not all(numbered):
        if len(data_names) != len(class_names):
            raise DataError(
                f"has {len(data_names)} classes without names, the package has {len(class_names)}",
                where=where,
                remedy="give the data class names (a class_names array in the npz, or class folders)",
            )
        notes.append("classes were matched by number, because one side has no class names")
        numbers = np.arange(len(data_names))
    else:
        folded = _folded(class_names, "the package")
        _folded(data_names, where)
        unknown = [name for name in data_names if _plain(name) not in folded]
        if unknown:
            raise DataError(
                f"class '{unknown[0]}' is not in the package ({len(unknown)} such)",
                where=where,
                allowed=", ".join(class_names),
                remedy=f"--rename-class '{unknown[0]}=...' says what it is called there (in a study, `classes`); "
                "nothing behind the = leaves it out",
            )
        numbers = np.array([folded[_plain(name)] for name in data_names])
        absent = [name for number, name in enumerate(class_names) if number not in numbers]
        if absent:
            notes.append(f"the data have no {', '.join(absent)}; metrics are over the other classes")
    return numbers, notes


def renamed(dataset: Dataset, mapping: Mapping[str, str | None]) -> Dataset:
    """Give classes other names; several may get one name, and images of a class mapped to None are left out.

    Raises:
        DataError: a name in the mapping is none of the data set's.
    """
    class_names = dataset.description.class_names
    unknown = [name for name in mapping if name not in class_names]
    if unknown:
        raise DataError(
            f"has no class '{unknown[0]}' to rename",
            where=dataset.description.name,
            remedy=nearest(unknown[0], class_names),
        )
    names = [mapping.get(name, name) for name in class_names]
    if "" in names:
        raise DataError("gives a class an empty name", where=dataset.description.name, remedy="null leaves it out")
    new_names = tuple(dict.fromkeys(name for name in names if name is not None))
    numbers = np.array([-1 if name is None else new_names.index(name) for name in names])
    task, splits = dataset.task, {}
    for part, split in dataset.splits.items():
        if task.exclusive:  # an image of a class that is left out goes with it; one of several findings stays
            kept = split.targets[:, numbers < 0].sum(axis=1) == 0
            splits[part] = split.take(np.flatnonzero(kept))
        else:
            splits[part] = split
    kind = task.kind
    if task.exclusive and not task.ordered:
        kind = exclusive_kind(len(new_names))
    return renumbered(Dataset(splits, dataset.description), numbers, make_task(kind, new_names))


def _plain(name: str) -> str:
    """How names are compared: without case, "01" like "1", accents however they are composed."""
    return str(int(name)) if name.isdecimal() else unicodedata.normalize("NFC", name).casefold().strip()


def _folded(names: tuple[str, ...], where: str) -> dict[str, int]:
    folded: dict[str, int] = {}
    for number, name in enumerate(names):
        if folded.setdefault(_plain(name), number) != number:
            raise DataError(f"has two classes called '{name}'", where=where, remedy="give them different names")
    return folded


def reordered(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The same data with its classes in the order of these names, where they are the same names; else as it is."""
    own = [_plain(name) for name in dataset.task.class_names]
    wanted = [_plain(name) for name in names]
    if sorted(own) != sorted(wanted) or len(set(own)) < len(own) or own == wanted:
        return dataset
    task = dataset.task.renamed(tuple(dataset.task.class_names[own.index(name)] for name in wanted))
    return renumbered(dataset, np.array([wanted.index(name) for name in own]), task)


def require_no_names_swapped(given: tuple[str, ...], own: tuple[str, ...]) -> None:
    """Refuse names of which some are the data's own at another place: whoever gives them means the order of these.

    Raises:
        ConfigError: there are some.
    """
    plain = [_plain(name) for name in own]
    for place, name in enumerate(given):
        if _plain(name) in plain and plain.index(_plain(name)) != place:
            raise ConfigError(
                f"'{name}' in place of '{own[place]}'", where="data.class_names",
                allowed=f"the data's own names in any order ({', '.join(own)}), or a new name for each in this order",
            )  # fmt: skip


def by_their_numbers(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Grades' names in the order of the one number in each; None where they have none, or equal ones.

    >>> by_their_numbers(("grade 10", "grade 2"))
    ('grade 2', 'grade 10')
    >>> by_their_numbers(("mild", "severe"))
    """
    found = [re.findall(r"\d+", name) for name in names]
    numbers = [int(words[0]) if len(words) == 1 else -1 for words in found]
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        return None
    return tuple(name for _, name in sorted(zip(numbers, names, strict=True)))


def renumbered(dataset: Dataset, numbers: npt.NDArray[np.intp], task: Task) -> Dataset:
    """Output ``i`` becomes output ``numbers[i]`` of the task; those of negative numbers are left out."""
    splits = {}
    for name, split in dataset.splits.items():
        targets = np.zeros((len(split), task.outputs), dtype=np.uint8)
        for old, new in enumerate(numbers):
            if new >= 0:
                targets[:, new] |= split.targets[:, old]
        splits[name] = replace(split, targets=targets)
    return Dataset(splits, replace(dataset.description, task=task))
