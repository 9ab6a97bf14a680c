"""What studies found, in one SQLite file that any number of programs may read while one writes.

Runs lie in ``runs`` by the hash of what determines them, their figures in ``figures``, one value a
row, so that a spreadsheet or a notebook can read them too; ``data`` holds what is known of each data set.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medistill.errors import DataError
from medistill.files import canonical_json, refusing_output
from medistill.types import Json

FORMAT = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    identity TEXT PRIMARY KEY, study TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, "group" TEXT NOT NULL,
    data_identity TEXT NOT NULL, method TEXT NOT NULL, ipc INTEGER, ratio REAL, seed INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')), error TEXT, starts INTEGER NOT NULL,
    seconds REAL NOT NULL, finished TEXT NOT NULL, machine TEXT NOT NULL, medistill TEXT NOT NULL,
    specification TEXT NOT NULL, result TEXT
);
CREATE TABLE IF NOT EXISTS figures (
    identity TEXT NOT NULL REFERENCES runs, site TEXT NOT NULL, net TEXT NOT NULL, quantity TEXT NOT NULL,
    arm TEXT NOT NULL, metric TEXT NOT NULL, mean REAL, low REAL, high REAL,
    PRIMARY KEY (identity, site, net, quantity, arm, metric)
);
CREATE TABLE IF NOT EXISTS data (
    identity TEXT PRIMARY KEY, name TEXT NOT NULL, "group" TEXT NOT NULL, known TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Record:
    """One run as it is kept.

    Args:
        identity: hash of all that determines it.
        study, kind, data, group, data_identity, method, ipc, ratio, seed: what it is.
        status: "done" or "failed".
        error: why it failed.
        starts: how often it was begun; more than once where its process was ended.
        seconds: it took.
        finished: when, ISO 8601 in UTC.
        machine: where, in words.
        medistill: version.
        specification: what was asked for.
        result: what was measured; None where it failed.
    """

    identity: str
    study: str
    kind: str
    data: str
    group: str
    data_identity: str
    method: str
    ipc: int | None
    ratio: float | None
    seed: int
    status: str
    error: str | None
    starts: int
    seconds: float
    finished: str
    machine: str
    medistill: str
    specification: Json
    result: Json | None


class Named(Protocol):
    """What says which run it is."""

    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def ipc(self) -> int | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def specification(self) -> Json: ...


def size_of(run: Named) -> str:
    """How many images were asked for, as tables write it: images per class, or the share of the images."""
    return str(run.ipc) if run.ipc is not None else f"{100 * (run.ratio or 0):g} %"


def size_in_words(run: Named) -> str:
    """How many images were asked for, in a sentence."""
    return f"{run.ipc} images per class" if run.ipc is not None else f"{size_of(run)} of the images"


def told(run: Named) -> str:
    """Which run it is, in words."""
    where = f", tested at {run.specification['site']['entry']['name']}" if run.kind == "transfer" else ""
    return f"{run.data}{where}, {run.method}, {size_in_words(run)}, seed {run.seed}"


def current(runs: Iterable[Record]) -> list[Record]:
    """Of runs that tables would call the same, those of the newest data and configuration.

    A database keeps what was measured under another recipe or on an earlier version of the data; that must not be
    taken for another seed.
    """
    known = list(runs)
    newest: dict[tuple[object, ...], tuple[str, str]] = {}
    for run in known:
        key, configuration = _place(run), _configuration(run)
        if key not in newest or newest[key][0] < run.finished:
            newest[key] = (run.finished, configuration)
    return [run for run in known if newest[_place(run)][1] == _configuration(run)]


def _place(run: Record) -> tuple[object, ...]:
    site = run.specification["site"]["entry"]["name"] if run.kind == "transfer" else None
    return (run.kind, run.data, run.group, run.method, run.ipc, run.ratio, site)


def _configuration(run: Record) -> str:
    """All that determines the result but the seed."""
    asked = run.specification
    determined = asked.get("determined", {})
    distil = {k: v for k, v in determined.get("distil", {}).items() if k != "seed"}
    return canonical_json([run.data_identity, asked.get("evaluate"), distil, determined.get("versions")])


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
        if not write and not path.is_file():
            raise DataError("no such database", where=path, remedy="make it with `medistill study run`")
        if write:
            with refusing_output(path, "--db"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        uri = f"{path.resolve().as_uri()}?mode={'rw' if write else 'ro&immutable=1' if _locked(path) else 'ro'}"
        with self._telling():
            self.connection = sqlite3.connect(uri, uri=True, timeout=60)
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            names = {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master")}
            if write and version == 0 and not names:
                with self.connection:
                    self.connection.executescript(_TABLES)
                    self.connection.execute(f"PRAGMA user_version = {FORMAT}")
                version, names = FORMAT, {"runs", "figures", "data"}
        if not {"runs", "figures", "data"} <= names:
            raise DataError("is no study's database", where=path, remedy="give --db the name of a new file")
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
            remedy = "another program writes it; wait, and give the command again"
            raise DataError(
                f"cannot be used ({problem})", where=self.path, remedy=remedy if "locked" in str(problem) else None
            ) from problem
        except sqlite3.DatabaseError as problem:
            raise DataError(f"is no study's database ({problem})", where=self.path) from problem

    def statuses(self) -> dict[str, str]:
        """Status of every run by its identity."""
        with self._telling():
            return dict(self.connection.execute("SELECT identity, status FROM runs"))

    def record(self, run: Record, figures: list[Figure]) -> None:
        """Keep a run; one that failed before is replaced, one that is done stays as it is."""
        values = {**run.__dict__}
        for name in ("specification", "result"):
            values[name] = None if values[name] is None else canonical_json(values[name])
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        with self._telling(), self.connection:
            self.connection.execute("DELETE FROM runs WHERE identity = ? AND status = 'failed'", (run.identity,))
            added = self.connection.execute(
                f"INSERT OR IGNORE INTO runs ({columns}) VALUES ({marks})", tuple(values.values())
            )
            if added.rowcount:
                rows = [(run.identity, *figure) for figure in figures]
                self.connection.executemany("INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def know(self, identity: str, name: str, group: str, known: Json) -> None:
        """Keep what is known of a data set."""
        with self._telling(), self.connection:
            self.connection.execute(
                "INSERT OR REPLACE INTO data VALUES (?, ?, ?, ?)", (identity, name, group, canonical_json(known))
            )

    def call(self, identity: str, study: str, data: str, group: str, method: str) -> None:
        """Call a run that is kept as its study calls it now; names and origins determine no result."""
        with self._telling(), self.connection:
            self.connection.execute(
                'UPDATE runs SET study = ?, data = ?, "group" = ?, method = ? WHERE identity = ?',
                (study, data, group, method, identity),
            )

    def known(self) -> dict[str, Json]:
        """What is known of each data set, by its identity."""
        with self._telling():
            rows = self.connection.execute("SELECT identity, known FROM data").fetchall()
        return {identity: json.loads(known) for identity, known in rows}

    def runs(self, status: str | None = None) -> list[Record]:
        """Runs in the order of what they are."""
        where = "" if status is None else "WHERE status = ?"
        order = 'ORDER BY "group", data, method, ipc, ratio, seed, kind, identity'
        names = list(Record.__dataclass_fields__)
        columns = ", ".join(f'"{name}"' for name in names)
        given = () if status is None else (status,)
        found = []
        with self._telling():
            rows = self.connection.execute(f"SELECT {columns} FROM runs {where} {order}", given).fetchall()
        for row in rows:
            values: dict[str, Any] = dict(zip(names, row, strict=True))
            for name in ("specification", "result"):
                values[name] = None if values[name] is None else json.loads(values[name])
            found.append(Record(**values))
        return found

    def figures(self) -> Iterator[tuple[Any, ...]]:
        """Every figure: identity, site, net, quantity, arm, metric, mean, low, high."""
        yield from self.connection.execute(
            "SELECT * FROM figures ORDER BY identity, site, net, quantity, arm, metric"
        )


def _locked(path: Path) -> bool:
    """Whether the place cannot be written, so that SQLite could not make its lock there."""
    return not os.access(path.parent, os.W_OK)
