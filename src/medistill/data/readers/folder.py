"""Class folders: ``train/<class>/*.png`` with or without split folders, PNG, JPEG, TIFF, BMP or DICOM.

A file ``patients.csv`` at the top, with the columns ``file`` (path below the top) and
``patient``, names patients; then splits are made and checked by patient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from medistill.config import DataConfig
from medistill.data.assemble import Assembled, assemble, described, unnamed_patients
from medistill.data.dataset import Dataset, Split
from medistill.data.pictures import KINDS, is_picture_file
from medistill.data.reader import Reader, register_reader
from medistill.data.table import SUFFIXES as TABLES
from medistill.data.table import read_table
from medistill.errors import DataError
from medistill.tasks.task import Task, inferred_task

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
SYSTEM_FILES = {
    "thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle",
    "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
"""Files and folders that operating systems and file servers leave behind, beside those that begin with a dot."""
KNOWN_SUFFIXES = {
    ".txt", ".csv", ".tsv", ".xml", ".json", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".zip", ".gz", ".mha", ".mhd",
    ".nrrd", ".webp", ".jp2", ".gif", ".svg", ".html", ".md", ".log", ".mp4", ".avi", ".npy", ".npz", ".parquet",
}  # fmt: skip
"""Endings of files that are left out that are told."""

LAYOUT = f"train/<class>/*.png, or <class>/*.png without split folders ({KINDS})"


def read_folder(root: Path, config: DataConfig) -> Dataset:
    """Read a folder of class folders.

    Args:
        root: the folder.
        config: ``size`` and ``channels`` bring every image to these, which is needed where they differ.

    Raises:
        DataError: no images, unreadable images, mixed sizes, modes or depths, unequal classes.
    """
    tops = _split_folders(root)
    first = next(iter(tops))
    names = _class_names(tops)
    by_class = {split: [_files(top / name) for name in names] for split, top in tops.items()}
    files = {split: [images for images, _ in groups] for split, groups in by_class.items()}
    others = [file for groups in by_class.values() for _, unread in groups for file in unread]
    if not any(files[first]):
        seen = "".join(f", but {note}" for note in _left_out(others))
        raise DataError(f"holds no image{seen}", where=tops[first], allowed=LAYOUT, remedy="convert them to PNG")
    rows = {
        split: [(file, label) for label, group in enumerate(groups) for file in group]
        for split, groups in files.items()
    }
    found = assemble(root, {split: [file for file, _ in pairs] for split, pairs in rows.items()}, config)
    patients = _patients(root)
    task = inferred_task(np.empty(0), names)
    splits = {
        split: _split(root, split, pairs, found, patients, task)
        for split, pairs in rows.items()
        if split in found.images
    }
    known = _patients_file(root)
    tables = [file for file in root.iterdir() if file.suffix.lower() in TABLES and file != known]
    unread = [f"{len(tables)} tables beside the class folders were not read; name one as the source, or patients.csv"]
    unnamed = unnamed_patients(found) if patients is None else []
    notes = (*_left_out(others), *(unread if tables else []), *found.notes, *unnamed)
    return Dataset(splits, described(task, found, notes))


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split, "train" first; the top itself is "train" where it holds the classes. "test" may stand
    alone, for whoever trains on a package.
    """
    tops: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in tops:
            raise DataError(f"has both '{tops[split].name}' and '{folder.name}'", where=root, remedy="merge the two")
        if split:
            tops[split] = folder
    beside = [f for f in _folders(root) if tops and f not in tops.values() and _files(f)[0]]
    if beside:
        raise DataError(
            f"has images in '{beside[0].name}', which is no split, beside {', '.join(sorted(tops))}",
            where=root,
            allowed=", ".join(sorted(set(SPLIT_NAMES))),
            remedy="rename that folder, or move it elsewhere",
        )
    if tops and "train" not in tops and set(tops) != {"test"}:
        raise DataError(f"has {', '.join(sorted(tops))} but no train folder", where=root, allowed=LAYOUT)
    return dict(sorted(tops.items(), key=lambda top: top[0] != "train")) or {"train": root}


def _class_names(tops: dict[str, Path]) -> list[str]:
    first = next(iter(tops.values()))
    names = [d.name for d in _folders(first)]
    odd = [name for name in names if not name.isprintable()]
    if odd:
        raise DataError(f"class folder {odd[0]!r} has unprintable characters", where=first, remedy="rename it")
    if not names:
        images, _ = _files(first)
        tables = [f.name for f in first.iterdir() if f.suffix.lower() in TABLES] if images else []
        raise DataError(
            "holds no class folder" + (f", but {len(images)} images" if images else ""), where=first, allowed=LAYOUT,
            remedy=f"name the table of labels as the source, for instance {tables[0]}" if tables else
            "put the images of each class into a folder of its own" if images else None,
        )  # fmt: skip
    below = [{d.name for d in _folders(first / name)} for name in names]
    if len(names) > 1 and len(below[0]) > 1 and all(own == below[0] for own in below):
        shown = ", ".join(sorted(below[0])[:4])
        raise DataError(
            f"holds the folders {', '.join(names[:4])}, each with the same folders {shown}", where=first,
            allowed=LAYOUT, remedy="name the folder that holds the classes, or call the splits train, val and test",
        )  # fmt: skip
    for top in tops.values():
        extra = sorted({d.name for d in _folders(top)} - set(names))
        if extra:
            raise DataError(
                f"class '{extra[0]}' is not in {tops['train']}", where=top, allowed=", ".join(sorted(names))
            )
    return names


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not is_hidden(d.name)) if path.is_dir() else []


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, sorted, and its other files, but nothing that is hidden or an operating system's."""
    files = sorted(walk(path)) if path.is_dir() else []
    images = [file for file in files if is_picture_file(file)]
    chosen = set(images)
    return images, [file for file in files if file not in chosen]


def walk(folder: Path) -> Iterator[Path]:
    """Files below a folder that nobody hides. Links are followed, each folder once.

    Raises:
        DataError: a folder that may not be read.
    """

    def refused(problem: OSError) -> None:
        raise DataError(
            f"cannot be read ({problem.strerror})",
            where=problem.filename,
            remedy="let it be read, or move it elsewhere",
        ) from problem

    seen: set[Path] = set()
    for top, folders, files in os.walk(folder, followlinks=True, onerror=refused):
        here = Path(top).resolve()
        folders[:] = [] if here in seen else sorted(name for name in folders if not is_hidden(name))
        if here in seen:
            continue
        seen.add(here)
        below = Path(top)
        yield from (file for name in files if not is_hidden(name) and (file := below / name).is_file())


def is_hidden(name: str) -> bool:
    """Whether an operating system hides it, or left it behind."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _left_out(others: list[Path]) -> tuple[str, ...]:
    """A note on files that are no images of a kind read here."""
    if not others:
        return ()
    # An ending may be anything, a name too ("Dr.Doe"), so only those that are known are told.
    known = {file.suffix.lower() if file.suffix.lower() in KNOWN_SUFFIXES else "others" for file in others}
    kinds = ", ".join(sorted(known))
    return (f"{len(others)} files in class folders were left out ({kinds}); images read are {KINDS}",)


def _split(
    root: Path,
    split: str,
    rows: list[tuple[Path, int]],
    found: Assembled,
    patients: dict[str, str] | None,
    task: Task,
) -> Split:
    kept = [rows[row] for row in found.rows[split]]
    ids = None
    if patients is not None:
        keys = [file.relative_to(root).as_posix() for file, _ in kept]
        missing = [k for k in keys if not patients.get(k)]
        if missing:
            raise DataError(
                f"names no patient for {missing[0]} ({len(missing)} in all)",
                where=_patients_file(root),
                remedy="name every image by its path below the folder, with / between folders",
            )
        ids = np.array([patients[k] for k in keys])
    labels = np.array([label for _, label in kept], dtype=np.int64)
    return found.split(split, task.targets(labels), ids)


def _patients_file(root: Path) -> Path | None:
    """``patients.csv``, however it is capitalised."""
    return next((f for f in sorted(root.iterdir()) if f.name.lower() == "patients.csv" and f.is_file()), None)


def _patients(root: Path) -> dict[str, str] | None:
    path = _patients_file(root)
    if path is None:
        return None
    table = read_table(path)
    files, names = table.of("file"), table.of("patient")
    if files is None or names is None:
        raise DataError(f"has the columns {', '.join(table.columns)}", where=path, allowed="file, patient")
    patients: dict[str, str] = {}
    for file, patient in zip(files, names, strict=True):
        if patients.setdefault(file, patient) != patient:
            raise DataError(
                f"names two patients for {file}: {patients[file]} and {patient}",
                where=path,
                remedy="keep one line for each image",
            )
    return patients


@register_reader
class FolderReader(Reader):
    """Class folders of pictures."""

    name: ClassVar[str] = "folder"
    accepts: ClassVar[str] = "a folder of class folders"
    order: ClassVar[int] = 20

    def matches(self, source: str, path: Path) -> bool:
        return path.is_dir()

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return read_folder(path, config)
