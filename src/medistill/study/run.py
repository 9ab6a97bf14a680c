"""``study run``: plan, do what is not done yet, keep every result as it comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from medistill.aliases import Json
from medistill.errors import ConfigError, concerning
from medistill.files import user_cache
from medistill.progress import Progress, duration, say
from medistill.records.records import RunRecord, RunSpec
from medistill.records.store import Store
from medistill.runtime import usable_cores
from medistill.study.config import own_name, read_study
from medistill.study.figures import figures_of
from medistill.study.plan import PlannedRun, estimated_seconds, plan, renewals


def study_run(
    file: str | Path,
    *,
    db: str | Path | None = None,
    data_folder: str | Path | None = None,
    engine: str = "joblib",
    address: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    retry_failed: bool = False,
    only_plan: bool = False,
    progress: bool = False,
) -> Json:
    """Run a study, or go on with it; what is done is never done again.

    Args:
        file: the study, a YAML file; see docs/how-to/run-a-study.md.
        db: the SQLite file that holds the results; beside the study's file by default.
        data_folder: where relative paths in the study lead; else ``MEDISTILL_DATA``, else the file's own folder.
        engine: "joblib" for processes of this machine, "ray" or "dask" for a cluster.
        address: of the cluster.
        processes: runs at once on this machine; by default as many as there are cores for ``threads`` each.
        threads: of each run.
        retry_failed: do again what failed before.
        only_plan: say what would be done, and do nothing.
        progress: show the plan and progress on standard error.

    Returns:
        ``db``, ``runs`` (planned), ``done``, ``failed`` (numbers after this call), ``ran`` (in this call),
        ``estimated_seconds`` of what was to do (None where nothing like it ever ran), ``errors`` by run.

    Raises:
        ConfigError, DataError: the file, a method or the data cannot be used; nothing was run.
        OutputError: the database cannot be written.
        EngineError: the engine cannot be used.
    """
    from medistill.study.engines import execute, require_engine

    require_engine(engine, address)
    for option, number in (("--processes", processes), ("--threads", threads)):
        if number is not None and number < 1:
            raise ConfigError(f"{number}", where=option, allowed="1 and more")
    path = Path(file).expanduser()
    study = read_study(path, None if data_folder is None else Path(data_folder).expanduser())
    with concerning(path):
        described = plan(study)
    planned = _once(described)
    for name, first in _known_by_another_name(described, planned).items():
        say(f"note: {name} holds the same images as {first}; runs that both describe count as {first}'s", progress)
    base = Path(db).expanduser() if db is not None else path.with_suffix(".db")
    parallel = processes or max(1, usable_cores() // threads)
    opened = nullcontext(None) if only_plan and not base.exists() else Store(base, write=not only_plan)
    with opened as store:
        records = store.runs() if store else []
        statuses = {record.identity: record.status for record in records}
        todo, again = _to_do(planned, statuses, retry_failed), renewals(planned, records)
        seconds = estimated_seconds(todo, [r for r in records if r.status == "done"])
        takes = "unknown time" if seconds is None else f"about {duration(seconds / parallel)}"
        failed = sum(statuses.get(run.identity) == "failed" for run in planned)
        before = sum(statuses.get(run.identity) == "done" for run in planned)
        also = f" and {failed} failed" if failed else ""
        say(f"{len(planned)} runs planned, {before} done{also} before; {takes} left", progress)
        if again:
            say(f"of the data of {len(again)} of them, features that predict learns from are computed anew", progress)
        ran = 0
        if store and not only_plan:
            for run in planned:
                if run.identity in statuses:
                    store.call(_without_folders(run))
        if store and (todo or again) and not only_plan:
            with Progress(path.stem, len(todo) + len(again), enabled=progress) as shown:

                def keep(run: PlannedRun, outcome: Json) -> None:
                    nonlocal ran
                    result = outcome["result"]
                    if run.kind != "features":
                        ran += 1
                        store.record(_record(run, outcome), figures_of(result) if result else [])
                    elif result:
                        store.renew(run.specification["of"], result)
                    if outcome["status"] == "failed":
                        say(f"failed: {run.title}: {outcome['error'].strip().splitlines()[-1]}", progress)
                    shown.advance(1, run.title)

                execute([*todo, *again], engine, address, parallel, threads, keep)
                tried = {run.identity for run in again}
                late = [run for run in renewals(planned, store.runs()) if run.identity not in tried]
                if late:  # what the cache held was measured without features, or with an earlier version's
                    shown.total += len(late)
                    execute(late, engine, address, parallel, threads, keep)
        after = {r.identity: r for r in store.runs()} if store else {}
    mine = [after[run.identity] for run in planned if run.identity in after]
    return {
        "db": str(base),
        "runs": len(planned),
        "done": sum(r.status == "done" for r in mine),
        "failed": sum(r.status == "failed" for r in mine),
        "ran": ran,
        "estimated_seconds": seconds,
        "errors": {r.title: r.error for r in mine if r.status == "failed"},
    }


def _to_do(runs: list[PlannedRun], statuses: dict[str, str], retry_failed: bool) -> list[PlannedRun]:
    again = {"failed"} if retry_failed else set()
    return [run for run in runs if statuses.get(run.identity, "new") in {"new", *again}]


def _once(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Two entries may describe the same run; it has the first one's name."""
    unique = {run.identity: run for run in reversed(runs)}
    return [run for run in runs if unique[run.identity] is run]


def _known_by_another_name(described: list[PlannedRun], planned: list[PlannedRun]) -> dict[str, str]:
    first = {run.identity: run.data for run in planned}
    return {run.data: first[run.identity] for run in described if run.data != first[run.identity]}


def _record(run: PlannedRun, outcome: Json) -> RunRecord:
    kept = ("status", "error", "starts", "seconds", "finished", "machine", "medistill", "result")
    asked = {field.name: getattr(_without_folders(run), field.name) for field in fields(RunSpec)}
    values = {name: outcome[name] for name in kept}
    return RunRecord(**asked, **{**values, "error": _without_places(values["error"], run)})


def _without_places(error: str | None, run: PlannedRun) -> str | None:
    """An error as it is kept: without the folders of the data, of the cache, of the program and of the user."""
    if error is None:
        return None
    places = [str(Path(entry["source"]).parent) for entry in _entries(run.specification)]
    for place in [*places, str(user_cache()), sys.prefix, str(Path.home())]:
        if Path(place).is_absolute() and place != os.sep:
            error = error.replace(place.rstrip(os.sep) + os.sep, "")
    return error


def _without_folders(run: PlannedRun) -> PlannedRun:
    """The run as it is kept: a database is shared, and where data lie is nobody else's concern."""
    plain = deepcopy(run.specification)
    for entry in _entries(plain):
        entry["source"] = own_name(entry["source"])
    return replace(run, specification=plain)


def _entries(value: Any) -> Iterator[Json]:
    """Every data entry of a specification, however deep."""
    if isinstance(value, dict):
        if "variation_seed" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _entries(item)
