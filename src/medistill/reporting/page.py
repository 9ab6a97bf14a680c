"""A page of tables, pictures and sentences, and the same tables as CSV, Parquet and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from medistill.reporting.html import Picture, template


@dataclass(frozen=True)
class Column:
    """A column: its title, how its numbers are written, and values from which on they are marked."""

    title: str
    style: str = ""
    marks: tuple[float, ...] = ()

    def text(self, value: Any) -> str:
        """A value for people; "-" where there is none."""
        if value is None:
            return "-"
        return format(value, self.style) if self.style and not isinstance(value, str) else str(value)

    def mark(self, value: Any) -> int:
        """How many of the marks a number reaches."""
        return sum(value >= mark for mark in self.marks) if isinstance(value, int | float) else 0


@dataclass(frozen=True)
class Table:
    """Numbers under titles.

    Args:
        key: in file names and links.
        title, note: for people.
        columns, rows: as many values in each row as there are columns; None where there is none.
    """

    key: str
    title: str
    note: str
    columns: list[Column]
    rows: list[list[Any]] = field(default_factory=list)

    def csv(self) -> str:
        """With full precision; nothing where there is no value."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return stream.getvalue()

    def parquet(self) -> bytes:
        """With full precision and types."""
        import pyarrow as pa
        from pyarrow import parquet

        arrays = {}
        for place, column in enumerate(self.columns):
            values = [row[place] for row in self.rows]
            if any(isinstance(v, float) for v in values):
                values = [None if v is None else float(v) for v in values]
            arrays[column.title] = pa.array(values)
        stream = io.BytesIO()
        parquet.write_table(pa.table(arrays), stream)
        return stream.getvalue()

    def latex(self) -> str:
        """A ``tabular`` for a paper, with ``booktabs``."""
        head = " & ".join(_escaped(column.title) for column in self.columns)
        align = "".join("l" if not column.style else "r" for column in self.columns)
        lines = [f"% {self.title}", f"\\begin{{tabular}}{{{align}}}", "\\toprule", f"{head} \\\\", "\\midrule"]
        for row in self.rows:
            cells = [_escaped(c.text(v)) for c, v in zip(self.columns, row, strict=True)]
            lines.append(" & ".join(cells) + " \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])

    def markdown(self) -> str:
        """For the docs."""
        lines = ["| " + " | ".join(c.title for c in self.columns) + " |", "|---" * len(self.columns) + "|"]
        for row in self.rows:
            lines.append("| " + " | ".join(c.text(v) for c, v in zip(self.columns, row, strict=True)) + " |")
        return "\n".join(lines)


@dataclass(frozen=True)
class Statement:
    """A sentence, and the key of the table that it comes from."""

    text: str
    table: str


@dataclass(frozen=True)
class Page:
    """What a page shows, in this order: lead, guidelines, pictures, tables."""

    title: str
    lead: list[str]
    statements: list[Statement]
    pictures: list[tuple[str, Picture]]
    tables: list[Table]


def render_page(page: Page) -> str:
    """One self-contained HTML file."""
    return template("page.html.jinja").render(page=page)


LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}", "<": r"\textless{}", ">": r"\textgreater{}"}
)
"""What each character that means something to LaTeX is written as."""


def _escaped(text: str) -> str:
    return text.translate(LATEX)
