"""Tables of labels: CSV with commas, semicolons or tabs, Parquet, Excel; which column says what."""

from __future__ import annotations

import csv
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

NO_FINDING = {"", "none", "no finding", "no_finding", "normal", "0"}
"""Words for an image without any finding."""


@dataclass(frozen=True)
class LabelTable:
    """A table as text.

    Args:
        path: where it was read.
        columns: values by name, all of one length.
        roles: which column says what.
    """

    path: Path
    columns: dict[str, list[str]]
    roles: dict[str, str]

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
    plain = {_plain(name): name for name in reversed(columns)}
    for role, names in ROLES.items():
        there = [plain[name] for name in names if name in plain and plain[name] not in chosen.values()]
        if role not in chosen and there:
            chosen[role] = there[0]
    return LabelTable(path, columns, chosen)


def _plain(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())


def _csv(path: Path) -> dict[str, list[str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")  # as spreadsheets save it where nobody asks for Unicode
    lines = text.splitlines()
    if not lines:
        return {}
    delimiter = max("\t;,", key=lines[0].count)
    header, *rows = csv.reader(lines, delimiter=delimiter)
    return _columns(path, header, (row for row in rows if any(cell.strip() for cell in row)))


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
                columns[name].append(cell.strip())
    return columns


def _parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: [_cell(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def _excel(path: Path) -> dict[str, list[str]]:
    import openpyxl

    sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
    rows = [[_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    if not rows:
        return {}
    return _columns(path, rows[0], (row for row in rows[1:] if any(row)))


def _cell(value: object) -> str:
    """A number as a person would write it: 3 for 3.0, as spreadsheets keep whole numbers."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def findings_of(table: LabelTable) -> dict[str, list[str]] | None:
    """Columns of zeros and ones, two or more, where no column holds labels; None where there are none."""
    if "label" in table.roles:
        return None
    used = set(table.roles.values())
    found = {name: values for name, values in table.columns.items() if name not in used and set(values) <= {"0", "1"}}
    return found if len(found) > 1 else None
