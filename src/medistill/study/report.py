"""``study report``: the database as one page and as tables for other programs."""

from __future__ import annotations

from pathlib import Path

from medistill.aliases import Json
from medistill.errors import ConfigError, DataError
from medistill.files import require_apart, require_ours, require_writable, write_atomically
from medistill.progress import duration
from medistill.records.records import RunRecord, current
from medistill.records.store import Store
from medistill.reporting.html import PAGE_MARK
from medistill.reporting.page import Page, Table, render_page
from medistill.study.pictures import pictures
from medistill.study.prediction_tables import indicator, representativeness_table
from medistill.study.statements import CHOSEN, statements
from medistill.study.tables import (
    boundary,
    cells,
    equivalents,
    failures,
    networks,
    pooled_table,
    results,
    robustness_table,
    sites,
)

SUFFIXES = ("csv", "parquet", "tex")


TABLES = (
    "boundary", "results", "equivalents", "networks", "sites", "pooled", "robustness", "representativeness",
    "indicator", "origins", "failures",
)  # fmt: skip
"""Keys of all that there may be."""


TABLES_MARK = "made-by-medistill.txt"
"""Lies among the tables of a report: where it does not, files called as they are somebody else's."""


def _require_own(folder: Path) -> None:
    names = {f"{key}.{suffix}" for key in TABLES for suffix in SUFFIXES}
    foreign = sorted(p.name for p in folder.iterdir() if p.name in names) if folder.is_dir() else []
    if foreign and not (folder / TABLES_MARK).exists():
        raise ConfigError(
            f"holds {foreign[0]}, which would be overwritten", where=f"--tables {folder}",
            allowed="a folder of an earlier report, or one without such files", remedy="name another folder",
        )  # fmt: skip


def all_tables(store: Store) -> list[Table]:
    """Every table that has rows."""
    runs = store.runs()
    of = cells(runs)
    made = [
        boundary(of), results(of), equivalents(of), networks(of), sites(runs), pooled_table(runs),
        robustness_table(of), representativeness_table(of), *indicator(runs), failures(runs),
    ]  # fmt: skip
    return [table for table in made if table.rows]


def study_report(db: str | Path, *, out: str | Path | None = None, tables: str | Path | None = None) -> Json:
    """Write a study's page, and its tables as CSV, Parquet and LaTeX. Nothing is run.

    Args:
        db: the study's database.
        out: HTML file; beside the database by default.
        tables: folder for the tables; beside the page by default, ``<page>-tables``.

    Returns:
        ``report`` and ``tables``, paths; ``runs`` and ``statements``, numbers.

    Raises:
        DataError: no database, or nothing in it.
        ConfigError: the page would take the database's place, or a table that of somebody's file.
        OutputError: the page or a table cannot be written.
    """
    base = Path(db).expanduser()
    target = Path(out).expanduser() if out is not None else base.with_suffix(".html")
    folder = Path(tables).expanduser() if tables is not None else target.with_name(f"{target.stem}-tables")
    require_apart(target, "--out", base)
    require_ours(target, "--out", PAGE_MARK)
    require_writable(target, "--out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError("is a file", where=folder, allowed="a folder for --tables")
    _require_own(folder)
    require_writable(folder / "results.csv", "--tables")
    with Store(base) as store:
        runs = current(store.runs())
        made = all_tables(store)
    if not runs:
        raise DataError("holds no run yet", where=base, remedy="fill it with `medistill study run`")
    of = cells(runs)
    told = statements(of, runs)
    page = Page(_title(sorted({r.study for r in runs})), _lead(runs), told, pictures(of, runs), made)
    write_atomically(target, render_page(page))
    write_atomically(
        folder / TABLES_MARK, "The tables here are written anew by each `medistill study report`.\n", "--tables"
    )
    for table in made:
        contents: tuple[bytes | str, ...] = (table.csv(), table.parquet(), table.latex())
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            write_atomically(folder / f"{table.key}.{suffix}", content, "--tables")
    for key in set(TABLES) - {table.key for table in made}:  # of an earlier report
        for suffix in SUFFIXES:
            (folder / f"{key}.{suffix}").unlink(missing_ok=True)
    return {
        "report": str(target.resolve()),
        "tables": str(folder.resolve()),
        "runs": len(runs),
        "statements": len(told),
    }


def _title(names: list[str]) -> str:
    return f"Study: {', '.join(names)}"


def _lead(runs: list[RunRecord]) -> list[str]:
    done = [r for r in runs if r.status == "done"]
    single = [r for r in done if r.kind == "distilled"]
    machines = sorted({r.machine for r in runs})
    versions = sorted({r.medistill for r in runs})
    kinds = (len({r.data for r in single}), len({r.group for r in single}), len({r.method for r in single}))
    sets, origins, methods = kinds
    return [
        f"{len(done)} runs on {sets} data sets of {origins} origins with {methods} methods; "
        f"{len(runs) - len(done)} failed.",
        f"{duration(sum(r.seconds for r in runs))} of work on {'; '.join(machines)}, not counting "
        f"networks that a cache held; medistill {', '.join(versions)}. Test images were seen once, by finished "
        "networks; random images stand beside every figure under the same recipe. " + CHOSEN,
    ]
