"""What studies found, in one SQLite file that any number of programs may read while one writes.

Runs lie in ``runs`` by the hash of what determines them, their figures in ``figures``, one value a
row, so that a spreadsheet or a notebook can read them too.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medistill.aliases import Json
from medistill.errors import DataError
from medistill.files import canonical_json, refusing_output
from medistill.progress import say
from medistill.records.records import RunRecord, RunSpec, now, upgraded_run_result, upgraded_specification

FORMAT = 1

NAMES = {
    "random_stored_alike": "random_matched", "recovery above chance": "recovery above baseline",
    "chance": "majority baseline",
}  # fmt: skip
"""What earlier versions called arms and quantities of the table of figures."""

WAIT = 60.0
"""Seconds to wait for a file that another program holds, before saying so."""

PATIENCE = 10
"""How often."""

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    identity TEXT PRIMARY KEY, study TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, "group" TEXT NOT NULL,
    data_identity TEXT NOT NULL, method TEXT NOT NULL, ipc INTEGER, ratio REAL, seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')), error TEXT, starts INTEGER NOT NULL,
    seconds REAL NOT NULL, finished TEXT NOT NULL, machine TEXT NOT NULL, medistill TEXT NOT NULL,
    specification TEXT NOT NULL, result TEXT, asked TEXT
);
CREATE TABLE IF NOT EXISTS figures (
    identity TEXT NOT NULL REFERENCES runs, site TEXT NOT NULL, net TEXT NOT NULL, quantity TEXT NOT NULL,
    arm TEXT NOT NULL, metric TEXT NOT NULL, mean REAL, low REAL, high REAL,
    PRIMARY KEY (identity, site, net, quantity, arm, metric)
);
"""


Figure = tuple[str, str, str, str, str, float | None, float | None, float | None]
"""Site, net, quantity, arm, metric, mean, and the 95 % interval's ends."""


class Store:
    """An open database; use as a context.

    Args:
        path: the file.
        write: make it where it is missing, and allow :meth:`record`.

    Raises:
        DataError: not a database of ours, or missing though only read.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, write: bool = False) -> None:
        self.path = path
        if path.is_dir():
            raise DataError("is a folder", where=path, allowed="a study's database, a file")
        if not write and not path.is_file():
            raise DataError("no such database", where=path, remedy="make it with `medistill study run`")
        if write:
            with refusing_output(path, "--db"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        uri = f"{path.resolve().as_uri()}?mode={'rw' if write else 'ro'}"
        with self._telling():
            self.connection = sqlite3.connect(uri, uri=True, timeout=WAIT)
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            names = {
                name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if write and version == 0 and not names:
                # One transaction, and no harm where another program does the same at this moment.
                self.connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
                version, names = FORMAT, {"runs", "figures"}
            columns = {row[1] for row in self.connection.execute("PRAGMA table_info(runs)")}
            self._knows_asked = "asked" in columns  # the first databases did not
            if write and "runs" in names and not self._knows_asked:
                try:
                    with self.connection:
                        self.connection.execute("ALTER TABLE runs ADD COLUMN asked TEXT")
                except sqlite3.OperationalError as problem:
                    if "duplicate column" not in str(problem):  # another program added it at this moment
                        raise
                self._knows_asked = True
        if not {"runs", "figures"} <= names:
            raise DataError("is no study's database", where=path, remedy="name another file")
        if version != FORMAT:
            raise DataError(
                f"has format {version}", where=path, allowed=str(FORMAT), remedy="it was made by another version"
            )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What SQLite refuses, in one line."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            remedy = "another program reads or writes it all the time; close that, and give the command again"
            raise DataError(
                f"cannot be used ({problem})", where=self.path, remedy=remedy if "locked" in str(problem) else None
            ) from problem
        except sqlite3.DatabaseError as problem:
            raise DataError(f"is no study's database ({problem})", where=self.path) from problem

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do ``work`` as one transaction. Programs that look at the file for long must not end a study of hours."""
        with self._telling():
            for left in reversed(range(PATIENCE)):
                try:
                    with self.connection:
                        work(self.connection)
                    return
                except sqlite3.OperationalError as problem:
                    if "locked" not in str(problem) or not left:
                        raise
                    say(f"{self.path} is held by another program; waiting for it", True)

    def record(self, run: RunRecord, figures: list[Figure]) -> None:
        """Keep a run; one that failed before is replaced, one that is done stays as it is."""
        values = {**run.__dict__, "asked": run.asked or now()}
        for name in ("specification", "result"):
            values[name] = None if values[name] is None else canonical_json(values[name])
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM runs WHERE identity = ? AND status = 'failed'", (run.identity,))
            added = connection.execute(
                f"INSERT OR IGNORE INTO runs ({columns}) VALUES ({marks})", tuple(values.values())
            )
            if added.rowcount:
                rows = [(run.identity, *figure) for figure in figures]
                connection.executemany("INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

        self._write(work)

    def renew(self, identity: str, update: Json) -> None:
        """Replace what is told about the data of a run that is done; nothing that was measured is among it."""

        def work(connection: sqlite3.Connection) -> None:
            (result,) = connection.execute("SELECT result FROM runs WHERE identity = ?", (identity,)).fetchone()
            changed = canonical_json({**json.loads(result), **update})
            connection.execute("UPDATE runs SET result = ? WHERE identity = ?", (changed, identity))

        self._write(work)

    def call(self, run: RunSpec) -> None:
        """Call a run that is kept as its study, which asks for it, calls it now; names and origins determine no
        result.
        """
        named = (run.study, run.data, run.group, run.method, canonical_json(run.specification), now())
        change = 'UPDATE runs SET study = ?, data = ?, "group" = ?, method = ?, specification = ?, asked = ?'
        self._write(lambda connection: connection.execute(f"{change} WHERE identity = ?", (*named, run.identity)))

    def runs(self, status: str | None = None) -> list[RunRecord]:
        """Runs in the order of what they are."""
        where = "" if status is None else "WHERE status = ?"
        order = 'ORDER BY "group", data, method, ipc, ratio, seed, kind, identity'
        names = list(RunRecord.__dataclass_fields__)
        present = names if self._knows_asked else names[:-1]
        columns = ", ".join(f'"{name}"' for name in present)
        given = () if status is None else (status,)
        records = []
        with self._telling():
            rows = self.connection.execute(f"SELECT {columns} FROM runs {where} {order}", given).fetchall()
        for row in rows:
            values: dict[str, Any] = dict(zip(present, row, strict=True))
            for name in ("specification", "result"):
                try:
                    values[name] = None if values[name] is None else json.loads(values[name])
                except ValueError as problem:
                    raise DataError(f"is damaged ({name} of run {row[0][:12]})", where=self.path) from problem
            values["specification"] = upgraded_specification(values["specification"])
            values["result"] = None if values["result"] is None else upgraded_run_result(values["result"])
            records.append(RunRecord(**values))
        return records

    def figures(self) -> list[tuple[Any, ...]]:
        """Every figure: identity, site, net, quantity, arm, metric, mean, low, high."""
        order = "identity, site, net, quantity, arm, metric"
        with self._telling():
            rows = self.connection.execute(f"SELECT * FROM figures ORDER BY {order}").fetchall()
        return [(*row[:3], NAMES.get(row[3], row[3]), NAMES.get(row[4], row[4]), *row[5:]) for row in rows]
