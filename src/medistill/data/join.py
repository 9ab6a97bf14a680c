"""Which row of a table each image belongs to: by its file's name, or by what its DICOM header says."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from medistill.data.dicom import identifiers
from medistill.data.pictures import DICOM_SUFFIXES, SUFFIXES
from medistill.data.pseudonym import pseudonym
from medistill.data.read_cache import identity, keep, kept
from medistill.data.reading import headers
from medistill.data.table import ROLES, LabelTable, plain
from medistill.errors import DataError
from medistill.runtime import usable_cores

Rows = dict[Path, int]
"""Which row of the table each file belongs to."""

Named = dict[str, list[Path]]
"""Files by what a table may call them."""

NAMES = ("path", "name", "name without ending")

HINTS = {
    "SOP instance": ("sop", "instance"), "series": ("series",), "study": ("study",),
    "accession number": ("accession",), "patient": ("patient", "subject"),
}  # fmt: skip
"""Words in a column's name that say which identifier it holds."""

ENDINGS = (".nii.gz", ".nii", *SUFFIXES, *DICOM_SUFFIXES)
"""Endings that a table may leave out, or have another of."""

ENOUGH = 0.5
"""Share of a column's values that must name images for it to be taken before those after it."""


def rows_of_files(table: LabelTable, root: Path, files: Sequence[Path]) -> tuple[Rows, list[str]]:
    """Which row each file belongs to, and notes on how that was found out.

    A column that the user names decides alone. Else those are asked that are called like one of files, then the
    patients'; then any column, but only for whole names and identifiers, as a running number may be the name of some
    file without its ending.

    Raises:
        DataError: no column names images, a name is that of several files, or two rows name the same image and
            differ.
    """
    by_kind = _names_of(root, files)
    best: tuple[float, str, str] = (0.0, "", "")
    for column, kinds in _candidates(table):
        values = {_key(value) for value in table.columns[column] if value}
        if not by_kind.keys() >= set(kinds):  # headers are read only where a column may hold what they say
            by_kind |= _identifiers_of(files)
        for kind in kinds:
            share = sum(value in by_kind[kind] for value in map(_way(kind), values)) / max(1, len(values))
            best = max(best, (share, column, kind), key=lambda found: found[0])
        if best[0] >= ENOUGH:
            break
    share, column, kind = best
    if not share:
        raise DataError(
            f"no column names any of {len(files)} images (their names end in {_endings(files)})", where=table.path,
            allowed="file names, or SOP instances, series, studies, accession numbers or patients of DICOM files",
            remedy="name the column: --set data.columns.file=COLUMN",
        )  # fmt: skip
    return _rows(table, column, kind, by_kind[kind], files)


def _rows(table: LabelTable, column: str, kind: str, named: Named, files: Sequence[Path]) -> tuple[Rows, list[str]]:
    rows: Rows = {}
    missing = 0
    way = _way(kind)
    for row, value in enumerate(table.columns[column]):
        own = named.get(way(_key(value)), [])
        missing += not own
        if kind in NAMES and len(own) > 1:
            raise DataError(
                f"row {row + 2} names an image by a name that {len(own)} files have", where=table.path,
                remedy="give paths from the table's folder, as 'folder/name'",
            )  # fmt: skip
        for file in own:
            before = rows.setdefault(file, row)
            if before != row and any(values[before] != values[row] for values in table.columns.values()):
                raise DataError(
                    f"rows {before + 2} and {row + 2} name the same image and differ", where=table.path,
                    remedy="keep one row for each image, or name the column of files: --set data.columns.file=COLUMN",
                )  # fmt: skip
    notes = [f"images were found by {kind}"]
    if missing:
        notes.append(f"{missing} of {len(table)} rows name no image that is there")
    return {file: rows[file] for file in files if file in rows}, notes


def _candidates(table: LabelTable) -> list[tuple[str, Sequence[str]]]:
    """Columns that may name images, in the order in which they are asked, and how each may."""
    if "file" in table.named:
        column = table.roles["file"]
        return [(column, (*NAMES, *HINTS))]
    spoken = {plain(name): name for name in reversed(table.columns)}
    first = [spoken[name] for name in ROLES["file"] if name in spoken]
    patients = [table.roles["patient"]] if "patient" in table.roles else []
    others = [name for name in table.columns if name not in (*first, *patients, table.roles.get("label"))]
    found: list[tuple[str, Sequence[str]]] = []
    for column in (*first, *patients, *others):
        hinted = [kind for kind, words in HINTS.items() if any(word in plain(column) for word in words)]
        if column in patients:
            found.append((column, ("patient",)))
        elif hinted:
            found.append((column, hinted[:1] if column not in first else (*hinted[:1], *NAMES)))
        elif column in first:
            found.append((column, (*NAMES, *HINTS)))
        else:
            found.append((column, ("path", "name", "SOP instance", "series", "study", "accession number")))
    return found


def _key(value: str) -> str:
    """Names are compared without case, accents however they are composed, with / between folders."""
    key = unicodedata.normalize("NFC", value).replace("\\", "/").casefold().strip()
    return key.removeprefix("./")


def _way(kind: str) -> Callable[[str], str]:
    """How a cell is looked up: a name may be written with a path or another ending, a number without its zeros."""
    return {
        "path": lambda key: key,
        "name": lambda key: key.rsplit("/", 1)[-1],
        "name without ending": lambda key: _stem(key.rsplit("/", 1)[-1]),
    }.get(kind, lambda key: pseudonym(key.lstrip("0") or key))


def _stem(name: str) -> str:
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def _names_of(root: Path, files: Sequence[Path]) -> dict[str, Named]:
    found: dict[str, Named] = {kind: defaultdict(list) for kind in NAMES}
    for file in files:
        for kind in NAMES:
            found[kind][_way(kind)(_key(file.relative_to(root).as_posix()))].append(file)
    return {kind: dict(named) for kind, named in found.items()}


def _identifiers_of(files: Sequence[Path]) -> dict[str, Named]:
    """DICOM files by each of their identifiers, which are salted hashes from here on."""
    found: dict[str, Named] = {kind: defaultdict(list) for kind in HINTS}
    for file, named in zip(files, _identifiers(files), strict=True):
        for kind, value in named.items():
            found[kind][value].append(file)
    return {kind: dict(named) for kind, named in found.items()}


def _identifiers(files: Sequence[Path]) -> list[dict[str, str]]:
    """Of each file its identifiers as they are looked up, kept for the next time."""
    try:
        key = identity({"": files}, {"identifiers": 1})
    except OSError:  # told when it is read
        key = ""
    entry = kept(key) if key else None
    if entry is not None:
        return list(entry[1]["identifiers"])
    found = [
        {kind: _way(kind)(_key(value)) for kind, value in of.items() if value}
        for of in headers(files, identifiers, usable_cores())
    ]
    if key:
        keep(key, {}, {"identifiers": found})
    return found


def _endings(files: Sequence[Path]) -> str:
    return ", ".join(sorted({"".join(file.suffixes[-1:]).lower() or "nothing" for file in files})[:4])
