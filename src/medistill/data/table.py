"""Tables of labels: CSV with commas, semicolons or tabs, Parquet, Excel; which column says what."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medistill.errors import DataError, nearest

SUFFIXES = {".csv", ".tsv", ".parquet", ".xlsx"}

ROLES = {
    "file": (
        "file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "image_file",
        "image_name", "image_id", "image_index", "sopinstanceuid", "sop_instance_uid", "instance",
        "seriesinstanceuid",
        "series_instance_uid", "series", "studyinstanceuid", "study_instance_uid", "study", "accessionnumber",
        "accession_number", "accession", "id",
    ),
    "label": (
        "label", "labels", "class", "class_name", "diagnosis", "target", "category", "grade", "finding", "findings",
        "finding_labels", "dx",
    ),
    "patient": ("patient", "patient_id", "patientid", "patient_number", "subject", "subject_id", "pid", "case_id"),
    "site": ("site", "scanner", "hospital", "centre", "center", "institution"),
    "split": ("split", "set", "subset", "partition"),
}  # fmt: skip
"""Names of columns by what they say, in small letters with underscores; the first that is there is taken."""

SEPARATOR = "|"
"""Between the findings of one image, as in the NIH's table of chest radiographs."""

MISSING = {"nan", "na", "n/a", "#n/a", "null", "<na>"}
"""What programs write where nothing is known."""

MOST_LINES = 3
"""Line breaks in a cell."""

NO_FINDING = {"none", "no finding", "no_finding", "normal", "0"}
"""Words for an image without any finding."""


@dataclass(frozen=True)
class LabelTable:
    """A table as text.

    Args:
        path: where it was read.
        columns: values by name, all of one length.
        roles: which column says what.
        named: roles whose columns the user named.
    """

    path: Path
    columns: dict[str, list[str]]
    roles: dict[str, str]
    named: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def of(self, role: str) -> list[str] | None:
        """The values of a role; None where no column has it."""
        return self.columns[self.roles[role]] if role in self.roles else None


def read_table(path: Path, roles: Mapping[str, str] | None = None) -> LabelTable:
    """Read a table and find out which column says what.

    Args:
        path: the file.
        roles: columns that the user names, by role.

    Raises:
        DataError: it cannot be read, is empty, or has no such column.
    """
    try:
        columns = {".parquet": _parquet, ".xlsx": _excel}.get(path.suffix.lower(), _csv)(path)
    except DataError:
        raise
    except Exception as problem:  # whatever a damaged file leads a reader to
        reason = " ".join(str(problem).split())[:160]
        raise DataError(
            f"cannot be read ({reason})", where=path, allowed="CSV, Parquet or Excel", remedy="save it anew"
        ) from problem
    if not columns or not len(next(iter(columns.values()))):
        raise DataError("holds no row", where=path, remedy="give a line of column names, and a line for each image")
    chosen: dict[str, str] = {}
    for role, name in (roles or {}).items():
        if role not in ROLES:
            raise DataError(f"'{role}' is nothing that a column says", where="data.columns", allowed=", ".join(ROLES))
        if name not in columns:
            raise DataError(
                f"has no column '{name}'", where=path, allowed=", ".join(columns), remedy=nearest(name, columns)
            )
        chosen[role] = name
    by_name = {plain(name): name for name in reversed(columns)}
    for role, names in ROLES.items():
        there = [by_name[name] for name in names if name in by_name and by_name[name] not in chosen.values()]
        if role not in chosen and there:
            chosen[role] = there[0]
    return LabelTable(path, columns, chosen, frozenset(roles or {}))


def plain(name: str) -> str:
    """A column's name in small letters with underscores."""
    return "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())


def _csv(path: Path) -> dict[str, list[str]]:
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what Excel calls Unicode text
        text = content.decode("utf-16")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")  # as spreadsheets save it where nobody asks for Unicode
    first, _, rest = text.lstrip("\r\n \t").partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:
        delimiter, text = first.strip()[4], rest
    else:
        delimiter, text = max("\t;,", key=first.count), f"{first}\n{rest}"
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    torn = [number for number, row in enumerate(filled, 1) for cell in row if cell.count("\n") > MOST_LINES]
    if torn:
        raise DataError(f"row {torn[0]} has a cell of many lines, as if a quotation mark were missing", where=path)
    return _columns(path, filled[0], filled[1:]) if filled else {}


def _columns(path: Path, header: Iterable[str], rows: Iterable[list[str]]) -> dict[str, list[str]]:
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"has two columns '{twice[0]}'", where=path, remedy="rename one")
    columns: dict[str, list[str]] = {name: [] for name in names if name}
    for number, row in enumerate(rows, 2):
        if len(row) > len(names) and any(cell.strip() for cell in row[len(names) :]):
            raise DataError(f"row {number} has {len(row)} cells, and the first has {len(names)}", where=path)
        cells = [*row, *[""] * (len(names) - len(row))]
        for name, cell in zip(names, cells, strict=False):
            if name:
                columns[name].append(_word(cell))
    return columns


def _parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: [_cell(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def _excel(path: Path) -> dict[str, list[str]]:
    import openpyxl

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    found = []
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # some programs write wrong ones
        rows = [[_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
        found.append([row for row in rows if any(row)])
    filled = [rows for rows in found if len(rows) > 1]
    if len(filled) > 1:
        raise DataError(
            f"has {len(filled)} sheets with rows", where=path, remedy="save the one that is right by itself"
        )
    return _columns(path, filled[0][0], filled[0][1:]) if filled else {}


def _cell(value: object) -> str:
    """What a person would write."""
    if value is None:
        return ""
    return _word(str(int(value)) if isinstance(value, bool) else str(value))


def _word(text: str) -> str:
    """A cell: 3 for 3.0, as spreadsheets keep whole numbers; nothing for words that say that nothing is known."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,15}\.0+", text):
        text = text.split(".")[0]
    return "" if text.lower() in MISSING else text


def in_order(names: set[str]) -> list[str]:
    """By number where all are numbers, so that 10 comes after 9."""
    try:
        return sorted(names, key=lambda name: (float(name.replace(",", ".")), name))
    except ValueError:
        return sorted(names)


def findings_of(table: LabelTable) -> dict[str, list[str]] | None:
    """Columns of zeros and ones, two or more, where no column holds labels; None where there are none.

    Raises:
        DataError: a column has zeros and ones, and something else.
    """
    if "label" in table.roles:
        return None
    used = set(table.roles.values())
    found, torn = {}, []
    for name, values in table.columns.items():
        kinds = set(values)
        if name in used or not kinds & {"0", "1"} or not kinds <= {"0", "1", "-1", ""}:
            continue
        if kinds <= {"0", "1"}:
            found[name] = values
        else:
            torn.append(name)
    if torn and (found or len(torn) > 1):
        empty = sum(value not in ("0", "1") for value in table.columns[torn[0]])
        raise DataError(
            f"has {empty} cells that are neither 0 nor 1", where=f"{table.path}, {torn[0]}",
            allowed="0 or 1 in columns of findings", remedy="decide for either, or take out rows that are uncertain",
        )  # fmt: skip
    return found if len(found) > 1 else None
