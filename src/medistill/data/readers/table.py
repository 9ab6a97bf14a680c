"""A table of labels beside images: ``labels.csv`` with a column that names files, or what DICOM headers name them by.

The table is the source, ``medistill check folder/labels.csv``, or lies as ``labels.csv`` (``.tsv``, ``.xlsx``,
``.parquet``) in the folder that is. Images are all those below its folder.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from medistill.config import DataConfig
from medistill.data.assemble import Assembled, assemble, described, names_by_number
from medistill.data.dataset import Dataset, Names, Split
from medistill.data.dicom import identifiers
from medistill.data.pictures import KINDS, is_picture_file
from medistill.data.reader import Reader, register_reader
from medistill.data.readers.folder import SPLIT_NAMES, walk
from medistill.data.table import NO_FINDING, SEPARATOR, SUFFIXES, LabelTable, findings_of, read_table
from medistill.errors import DataError
from medistill.tasks.task import Task, inferred_task, make_task

Rows = dict[Path, int]
"""Which row of the table each file belongs to."""


def read_labelled(path: Path, config: DataConfig) -> Dataset:
    """Read a table and the images that it names.

    Raises:
        DataError: no column of labels, no file that the table names, contradictory rows, unreadable images.
    """
    table, root = read_table(path, config.columns), path.parent
    files = sorted(filter(is_picture_file, walk(root)))
    if not files:
        raise DataError("has no image beside it", where=path, allowed=KINDS)
    labels, task = _labels(table)
    rows, notes = _joined(table, root, files)
    unnamed = len(files) - len(rows)
    if unnamed:
        notes.append(f"{unnamed} images are not in the table and were left out")
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
            "names no training image", where=path, allowed=f"a column 'split' of {', '.join(SPLIT_NAMES)}"
        )
    ordered = {name: by_split[name] for name in ("train", "val", "test") if by_split[name]}
    found = assemble(root, ordered, config)
    made = {
        name: _split(table, [rows[paths[row]] for row in found.rows[name]], found, name, labels, task)
        for name, paths in ordered.items()
    }
    return Dataset(made, described(root.resolve().name, task, found, (*notes, *found.notes)))


def _labels(table: LabelTable) -> tuple[list[tuple[int, ...] | None], Task]:
    """Of each row the numbers of its classes or findings, None where it has no label; and the task."""
    if (columns := findings_of(table)) is not None:
        rows = zip(*columns.values(), strict=True)
        return [tuple(i for i, v in enumerate(row) if v == "1") for row in rows], make_task(
            "multi-label", tuple(columns)
        )
    words = table.of("label")
    if words is None:
        raise DataError(
            f"has no column of labels but {', '.join(list(table.columns)[:12])}",
            where=table.path,
            allowed="a column called label, class or diagnosis, or columns of zeros and ones for findings",
            remedy="name it: --set data.columns.label=COLUMN",
        )
    if any(SEPARATOR in word for word in words):
        several = [
            [w.strip() for w in word.split(SEPARATOR) if w.strip().lower() not in NO_FINDING] for word in words
        ]
        names = sorted({name for own in several for name in own})
        return [tuple(names.index(name) for name in own) for own in several], make_task("multi-label", tuple(names))
    names = _in_order({word for word in words if word})
    if len(names) > max(2, len(words) // 2):
        raise DataError(
            f"has {len(names)} different labels in {len(words)} rows", where=f"{table.path}, {table.roles['label']}",
            allowed="a class for each image", remedy="name the column of classes: --set data.columns.label=COLUMN",
        )  # fmt: skip
    return [(names.index(word),) if word else None for word in words], inferred_task(np.empty(0), names)


def _in_order(names: set[str]) -> list[str]:
    """By number where all are numbers, so that 10 comes after 9."""
    numbers = all(name.lstrip("+-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def _joined(table: LabelTable, root: Path, files: Sequence[Path]) -> tuple[Rows, list[str]]:
    """Which row each file belongs to, by name, or by what its header says.

    Raises:
        DataError: no column names files, or two rows name the same with different labels.
    """
    asked = [table.roles["file"]] if "file" in table.roles else []
    others = [table.roles["patient"]] if "patient" in table.roles else []
    columns = [*asked, *others, *(name for name in table.columns if name not in (*asked, *others))]
    keys = _names_of(root, files)
    best = max((_matched(table.columns[column], key) for column in columns[:1] for key in keys.values()), default=0)
    if not best:
        keys |= _identifiers_of(files)
    scores = {
        (column, kind): _matched(table.columns[column], key) for column in columns for kind, key in keys.items()
    }
    (column, kind), matched = max(scores.items(), key=lambda item: item[1])
    if not matched:
        raise DataError(
            f"no column names any of {len(files)} images, as {files[0].relative_to(root).as_posix()}",
            where=table.path,
            allowed="file names, or SOP instances, series, studies, accession numbers or patients of DICOM files",
            remedy="name the column: --set data.columns.file=COLUMN",
        )  # fmt: skip
    named: dict[str, list[Path]] = keys[kind]
    rows: Rows = {}
    missing = 0
    for row, value in enumerate(table.columns[column]):
        missing += value not in named
        for file in named.get(value, ()):
            before = rows.setdefault(file, row)
            if before != row and _differ(table, before, row):
                raise DataError(
                    f"rows {before + 2} and {row + 2} name the same image and differ", where=table.path,
                    remedy="keep one row for each image",
                )  # fmt: skip
    notes = [f"images were found by {kind}"]
    if missing:
        notes.append(f"{missing} of {len(table)} rows name no image that is there")
    return {file: rows[file] for file in files if file in rows}, notes


def _differ(table: LabelTable, first: int, second: int) -> bool:
    return any(values[first] != values[second] for values in table.columns.values())


def _matched(values: Sequence[str], named: dict[str, list[Path]]) -> int:
    return sum(value in named for value in set(values))


def _names_of(root: Path, files: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Files by path, by name and by name without ending; names that several files have are left out."""
    found: dict[str, dict[str, list[Path]]] = {"path": {f.relative_to(root).as_posix(): [f] for f in files}}
    for kind, name_of in (("name", lambda f: f.name), ("name without ending", lambda f: f.stem)):
        counts = Counter(map(name_of, files))
        found[kind] = {name_of(f): [f] for f in files if counts[name_of(f)] == 1}
    return found


def _identifiers_of(files: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """DICOM files by each of their identifiers."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for kind, value in identifiers(file).items():
            if value:
                found[kind][value].append(file)
    return {kind: dict(named) for kind, named in found.items()}


def _splits(table: LabelTable) -> list[str]:
    words = table.of("split")
    if words is None:
        return ["train"] * len(table)
    odd = sorted({word for word in words if word.lower() not in SPLIT_NAMES})
    if odd:
        raise DataError(
            f"has the split '{odd[0]}'", where=f"{table.path}, {table.roles['split']}", allowed=", ".join(SPLIT_NAMES)
        )
    return [SPLIT_NAMES[word.lower()] for word in words]


def _split(
    table: LabelTable,
    rows: list[int],
    found: Assembled,
    name: str,
    labels: list[tuple[int, ...] | None],
    task: Task,
) -> Split:
    targets = np.zeros((len(rows), task.outputs), dtype=np.uint8)
    for place, row in enumerate(rows):
        targets[place, list(labels[row] or ())] = 1

    def names(role: str, what: str) -> Names | None:
        values = table.of(role)
        if values is None:
            return found.numbered(what, name)
        return names_by_number([values[row] for row in rows], values, role)

    return Split(found.images[name], targets, names("patient", "patient"), names("site", "scanner"))


@register_reader
class TableReader(Reader):
    """A table of labels and the images below its folder."""

    name: ClassVar[str] = "table"
    accepts: ClassVar[str] = "a table of labels (CSV, Parquet, Excel) beside images"
    order: ClassVar[int] = 15

    def matches(self, source: str, path: Path) -> bool:
        return self._table(path) is not None

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        table = self._table(path)
        assert table is not None
        return read_labelled(table, config)

    def _table(self, path: Path) -> Path | None:
        if path.is_file():
            return path if path.suffix.lower() in SUFFIXES else None
        found = sorted(path.glob("[lL][aA][bB][eE][lL][sS].*")) if path.is_dir() else []
        return next((file for file in found if file.suffix.lower() in SUFFIXES), None)
