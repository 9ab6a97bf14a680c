"""A table of labels beside images: ``labels.csv`` with a column that names files, or what DICOM headers name them by.

The table is the source, ``medistill check folder/labels.csv``, or lies as ``labels.csv`` (``.tsv``, ``.xlsx``,
``.parquet``) in the folder that is. Images are all those below its folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from medistill.config import DataConfig
from medistill.data.assemble import Assembled, assemble, described, unnamed_patients
from medistill.data.dataset import Dataset, Split
from medistill.data.join import rows_of_files
from medistill.data.pictures import KINDS, is_picture_file
from medistill.data.pseudonym import pseudonym
from medistill.data.reader import Reader, register_reader
from medistill.data.readers.folder import SPLIT_NAMES, walk
from medistill.data.table import NO_FINDING, SEPARATOR, SUFFIXES, LabelTable, findings_of, in_order, read_table
from medistill.errors import DataError
from medistill.tasks.task import Task, inferred_task, make_task

MANY_LABELS = 6
"""Labels that a table of few rows may have; above, and above half of the rows, they are none."""


def read_labelled(path: Path, config: DataConfig) -> Dataset:
    """Read a table and the images that it names.

    Raises:
        DataError: no column of labels, no file that the table names, contradictory rows, unreadable images.
    """
    table, root = read_table(path, config.columns), path.parent
    files = sorted(filter(is_picture_file, walk(root)))
    if not files:
        raise DataError("has no image beside it", where=path, allowed=KINDS)
    rows, notes = rows_of_files(table, root, files)
    unnamed = len(files) - len(rows)
    if unnamed:
        notes.append(f"{unnamed} images are not in the table and were left out")
    return read_rows(table, root, rows, config, notes)


def read_rows(
    table: LabelTable, root: Path, rows: Mapping[Path, int], config: DataConfig, notes: Sequence[str]
) -> Dataset:
    """Read images whose labels a table says.

    Args:
        table: labels, and where it says so splits, patients and sites.
        root: what files are below.
        rows: of each file its row.
        config: as for :func:`medistill.data.assemble.assemble`.
        notes: what is to be told beside what is found here.

    Raises:
        DataError: no column of labels, no training image, unreadable images.
    """
    labels, task, told = _labels(table)
    notes = [*notes, *told]
    empty = [file for file, row in rows.items() if labels[row] is None]
    if empty:
        notes.append(f"{len(empty)} images have no label and were left out")
    splits = _splits(table)
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file, row in rows.items():
        if labels[row] is not None:
            by_split[splits[row]].append(file)
    if not by_split["train"]:
        raise DataError(
            "names no training image", where=table.path, allowed=f"a column 'split' of {', '.join(SPLIT_NAMES)}"
        )
    ordered = {name: by_split[name] for name in ("train", "val", "test") if by_split[name]}
    found = assemble(root, ordered, config)
    rows_of = {name: [rows[ordered[name][row]] for row in found.rows[name]] for name in found.images}
    found = _with_what_the_table_says(found, table, rows_of)
    made = {name: _split(table, own, found, name, labels, task) for name, own in rows_of.items()}
    notes += unnamed_patients(found)
    return Dataset(made, described(task, found, (*notes, *found.notes)))


def _labels(table: LabelTable) -> tuple[list[tuple[int, ...] | None], Task, list[str]]:
    """Of each row the numbers of its classes or findings, None where it has no label; the task; notes."""
    if (columns := findings_of(table)) is not None:
        rows = zip(*columns.values(), strict=True)
        note = f"columns read as findings: {len(columns)}"
        return (
            [tuple(i for i, v in enumerate(row) if v == "1") for row in rows],
            make_task("multi-label", tuple(columns)),
            [note],
        )
    words = table.of("label")
    if words is None:
        raise DataError(
            f"has no column of labels among {len(table.columns)}", where=table.path,
            allowed="a column called label, class or diagnosis, or columns of zeros and ones for findings",
            remedy="name it: --set data.columns.label=COLUMN",
        )  # fmt: skip
    if any(SEPARATOR in word for word in words):
        return (*_several(words), [f"labels with {SEPARATOR} between them were read as findings"])
    names = in_order({word for word in words if word})
    alike = [(a, b) for a, b in pairwise(sorted(names, key=str.casefold)) if a.casefold() == b.casefold()]
    if alike:
        raise DataError(
            f"has labels '{alike[0][0]}' and '{alike[0][1]}', which differ in case alone",
            where=f"{table.path}, {table.roles['label']}", remedy="write them alike",
        )  # fmt: skip
    if len(names) > max(MANY_LABELS, len(words) // 2):
        raise DataError(
            f"has {len(names)} different labels in {len(words)} rows", where=f"{table.path}, {table.roles['label']}",
            allowed="a class for each image", remedy="name the column of classes: --set data.columns.label=COLUMN",
        )  # fmt: skip
    numbers = {name: number for number, name in enumerate(names)}
    return [(numbers[word],) if word else None for word in words], inferred_task(np.empty(0), names), []


def _several(words: Sequence[str]) -> tuple[list[tuple[int, ...] | None], Task]:
    """Findings between bars; an empty cell is no answer, a word for none is one."""
    several = [
        [one.strip() for one in word.split(SEPARATOR) if one.strip().lower() not in NO_FINDING] if word else None
        for word in words
    ]
    names = sorted({name for own in several if own for name in own})
    found = [None if own is None else tuple(names.index(name) for name in own) for own in several]
    return found, make_task("multi-label", tuple(names))


def _splits(table: LabelTable) -> list[str]:
    words = table.of("split")
    if words is None:
        return ["train"] * len(table)
    odd = sorted({word for word in words if word.lower() not in SPLIT_NAMES})
    if odd:
        raise DataError(
            f"row {words.index(odd[0]) + 2} has another split",
            where=f"{table.path}, {table.roles['split']}",
            allowed=", ".join(SPLIT_NAMES),
        )
    return [SPLIT_NAMES[word.lower()] for word in words]


def _split(
    table: LabelTable, rows: list[int], found: Assembled, name: str, labels: list[tuple[int, ...] | None], task: Task
) -> Split:
    targets = np.zeros((len(rows), task.outputs), dtype=np.uint8)
    for place, row in enumerate(rows):
        targets[place, list(labels[row] or ())] = 1
    return found.split(name, targets)


def _with_what_the_table_says(found: Assembled, table: LabelTable, rows_of: dict[str, list[int]]) -> Assembled:
    """The files with the patients and scanners of the table, where it names any; else what headers say stands."""
    nothing = [""] * len(table)
    patients, sites = ([pseudonym(name) for name in table.of(role) or nothing] for role in ("patient", "site"))
    pictures = {
        name: [
            replace(own, patient=patients[row] or own.patient, scanner=sites[row] or own.scanner)
            for own, row in zip(found.pictures[name], rows, strict=True)
        ]
        for name, rows in rows_of.items()
    }
    return replace(found, pictures=pictures)


@register_reader
class TableReader(Reader):
    """A table of labels and the images below its folder."""

    name: ClassVar[str] = "table"
    accepts: ClassVar[str] = "a table of labels (CSV, Parquet, Excel) beside images"
    order: ClassVar[int] = 15

    def matches(self, source: str, path: Path) -> bool:
        file = _table_of(path)
        # A table of classes, not of images, lies in some class folders.
        return file is not None and (file == path or _says_labels(read_table(file)))

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        table = _table_of(path)
        assert table is not None
        return read_labelled(table, config)


def _table_of(path: Path) -> Path | None:
    """The table that a source is, or the one called ``labels`` in a folder.

    Raises:
        DataError: a folder has several.
    """
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    found = sorted(path.glob("[lL][aA][bB][eE][lL][sS].*")) if path.is_dir() else []
    tables = [file for file in found if file.suffix.lower() in SUFFIXES and file.is_file()]
    if len(tables) > 1:
        raise DataError(
            f"has the tables {' and '.join(file.name for file in tables)}", where=path,
            remedy="name the one that is right as the source",
        )  # fmt: skip
    return tables[0] if tables else None


def _says_labels(table: LabelTable) -> bool:
    return "label" in table.roles or findings_of(table) is not None
