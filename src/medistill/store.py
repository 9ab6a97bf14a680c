"""What studies found, in one SQLite file that any number of programs may read while one writes.

Runs lie in ``runs`` by the hash of what determines them, their figures in ``figures``, one value a
row, so that a spreadsheet or a notebook can read them too.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medistill.errors import DataError
from medistill.files import canonical_json, refusing_output
from medistill.progress import say
from medistill.types import Json

FORMAT = 1

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


@dataclass(frozen=True)
class Asked:
    """What a run is, before it is done and after.

    Args:
        identity: hash of all that determines its result.
        study: the study's name.
        kind: "distilled", "transfer" (its networks tested at another site) or "pooled"; "features" while those
            of a run's data are computed anew, which is kept with that run.
        data, group: name and origin of what it trains on.
        data_identity: hash of their content, as varied.
        method: what tables call it.
        ipc, ratio: one of both.
        seed: of distilling.
        specification: what a worker needs to do it; as it is kept, sources are named without their folders.
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
    specification: Json

    @property
    def size(self) -> str:
        """How many images were asked for, as tables write it: images per class, or the share of the images."""
        return str(self.ipc) if self.ipc is not None else f"{100 * (self.ratio or 0):g} %"

    @property
    def size_in_words(self) -> str:
        """How many images were asked for, in a sentence."""
        if self.ipc is None:
            return f"{self.size} of the images"
        return "1 image per class" if self.ipc == 1 else f"{self.ipc} images per class"

    @property
    def title(self) -> str:
        """Which run it is, in words."""
        where = f", tested at {self.site}" if self.site else ""
        return f"{self.data}{where}, {self.method}, {self.size_in_words}, seed {self.seed}"

    @property
    def site(self) -> str | None:
        """Where the networks of a transfer are tested."""
        return str(self.specification["site"]["entry"]["name"]) if self.kind == "transfer" else None

    @property
    def factor(self) -> int:
        """Images are stored at one in so many of their side."""
        return int(self.distil.get("factor", 1))

    @property
    def is_random(self) -> bool:
        """Whether these are plain random real images, whatever the method is called."""
        labelled = self.distil.get("labels", {}).get("teachers", 0) > 0
        return bool(self.specification["method"]["method"] == "random") and self.factor == 1 and not labelled

    @property
    def distil(self) -> Json:
        """How the package is distilled: ``method``, ``factor``, ``labels``, size and seed."""
        return dict(self.specification.get("determined", {}).get("distil", {}))


@dataclass(frozen=True)
class Record(Asked):
    """One run as it is kept.

    Args:
        status: "done" or "failed".
        error: why it failed.
        starts: how often it was begun; more than once where its process was ended.
        seconds: it took.
        finished: when, ISO 8601 in UTC.
        machine: where, in words.
        medistill: version.
        result: what was measured; None where it failed.
        asked: when a study last asked for it, as ``finished``.
    """

    status: str
    error: str | None
    starts: int
    seconds: float
    finished: str
    machine: str
    medistill: str
    result: Json | None
    asked: str | None = None


def current(runs: Iterable[Record]) -> list[Record]:
    """Of runs that tables would call the same, those of the data and configuration that were asked for last.

    A database keeps what was measured under another recipe or on an earlier version of the data; that must not be
    taken for another seed.
    """
    known = list(runs)
    newest: dict[tuple[object, ...], tuple[str, str]] = {}
    for run in known:
        key, configuration, asked = _place(run), _configuration(run), run.asked or run.finished
        if key not in newest or newest[key][0] < asked:
            newest[key] = (asked, configuration)
    return [run for run in known if newest[_place(run)][1] == _configuration(run)]


def _place(run: Record) -> tuple[object, ...]:
    return (run.kind, run.data, run.group, run.method, run.ipc, run.ratio, run.site)


def _configuration(run: Record) -> str:
    """All that determines the result but the seed."""
    asked = run.specification
    determined = asked.get("determined", {})
    distil = {k: v for k, v in determined.get("distil", {}).items() if k != "seed"}
    site = {k: v for k, v in asked["site"].items() if k != "entry"} if "site" in asked else None
    return canonical_json([run.data_identity, site, asked.get("evaluate"), distil, determined.get("versions")])


def now() -> str:
    """The time as ``asked`` holds it, finer than seconds so that one study's asking lies after another's."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


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

    def record(self, run: Record, figures: list[Figure]) -> None:
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

    def renew(self, identity: str, found: Json) -> None:
        """Replace what is told about the data of a run that is done; nothing that was measured is among it."""

        def work(connection: sqlite3.Connection) -> None:
            (result,) = connection.execute("SELECT result FROM runs WHERE identity = ?", (identity,)).fetchone()
            changed = canonical_json({**json.loads(result), **found})
            connection.execute("UPDATE runs SET result = ? WHERE identity = ?", (changed, identity))

        self._write(work)

    def call(self, run: Asked) -> None:
        """Call a run that is kept as its study, which asks for it, calls it now; names and origins determine no
        result.
        """
        named = (run.study, run.data, run.group, run.method, canonical_json(run.specification), now())
        change = 'UPDATE runs SET study = ?, data = ?, "group" = ?, method = ?, specification = ?, asked = ?'
        self._write(lambda connection: connection.execute(f"{change} WHERE identity = ?", (*named, run.identity)))

    def runs(self, status: str | None = None) -> list[Record]:
        """Runs in the order of what they are."""
        where = "" if status is None else "WHERE status = ?"
        order = 'ORDER BY "group", data, method, ipc, ratio, seed, kind, identity'
        names = list(Record.__dataclass_fields__)
        known = names if self._knows_asked else names[:-1]
        columns = ", ".join(f'"{name}"' for name in known)
        given = () if status is None else (status,)
        found = []
        with self._telling():
            rows = self.connection.execute(f"SELECT {columns} FROM runs {where} {order}", given).fetchall()
        for row in rows:
            values: dict[str, Any] = dict(zip(known, row, strict=True))
            for name in ("specification", "result"):
                try:
                    values[name] = None if values[name] is None else json.loads(values[name])
                except ValueError as problem:
                    raise DataError(f"is damaged ({name} of run {row[0][:12]})", where=self.path) from problem
            found.append(Record(**values))
        return found

    def figures(self) -> list[tuple[Any, ...]]:
        """Every figure: identity, site, net, quantity, arm, metric, mean, low, high."""
        order = "identity, site, net, quantity, arm, metric"
        with self._telling():
            return self.connection.execute(f"SELECT * FROM figures ORDER BY {order}").fetchall()
