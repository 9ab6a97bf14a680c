"""``study run``: plan, do what is not done yet, keep every result as it comes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from medistill.progress import Progress, duration, say
from medistill.runtime import usable_cores
from medistill.store import Record, Store, told
from medistill.study.config import read_study
from medistill.study.figures import figures_of
from medistill.study.plan import Plan, Run, estimated_seconds, plan
from medistill.types import Json


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
    from medistill.study.engines import execute

    path = Path(file)
    base = Path(db) if db is not None else path.with_suffix(".db")
    planned = plan(read_study(path, None if data_folder is None else Path(data_folder)))
    parallel = processes or max(1, usable_cores() // threads)
    opened = nullcontext(None) if only_plan and not base.exists() else Store(base, write=not only_plan)
    with opened as store:
        known = store.runs() if store else []
        statuses = {record.identity: record.status for record in known}
        todo = _to_do(planned.runs, statuses, retry_failed)
        seconds = estimated_seconds(todo, [r for r in known if r.status == "done"])
        takes = "unknown time" if seconds is None else f"about {duration(seconds / parallel)}"
        say(f"{len(planned.runs)} runs planned, {len(planned.runs) - len(todo)} done before; {takes} left", progress)
        ran = 0
        if store and not only_plan:
            _know(store, planned)
            for run in planned.runs:
                if run.identity in statuses:
                    store.call(run.identity, run.study, run.data, run.group, run.method)
        if store and todo and not only_plan:
            with Progress(path.stem, len(todo), enabled=progress) as shown:

                def keep(run: Run, outcome: Json) -> None:
                    nonlocal ran
                    ran += 1
                    result = outcome["result"]
                    store.record(_record(run, outcome), figures_of(result) if result else [])
                    if outcome["status"] == "failed":
                        say(f"failed: {run.title}: {outcome['error'].strip().splitlines()[-1]}", progress)
                    shown.advance(1, run.title)

                execute(todo, engine, address, parallel, threads, keep)
        after = {r.identity: r for r in store.runs()} if store else {}
    mine = [after[run.identity] for run in planned.runs if run.identity in after]
    return {
        "db": str(base),
        "runs": len(planned.runs),
        "done": sum(r.status == "done" for r in mine),
        "failed": sum(r.status == "failed" for r in mine),
        "ran": ran,
        "estimated_seconds": seconds,
        "errors": {told(r): r.error for r in mine if r.status == "failed"},
    }


def _to_do(runs: list[Run], statuses: dict[str, str], retry_failed: bool) -> list[Run]:
    again = {"failed"} if retry_failed else set()
    unique = {run.identity: run for run in reversed(runs)}  # two entries may describe the same run
    return [
        run for run in runs if unique[run.identity] is run and statuses.get(run.identity, "new") in {"new", *again}
    ]


def _record(run: Run, outcome: Json) -> Record:
    kept = ("status", "error", "starts", "seconds", "finished", "machine", "medistill", "result")
    return Record(
        run.identity, run.study, run.kind, run.data, run.group, run.data_identity, run.method, run.ipc, run.ratio,
        run.seed, specification=run.specification, **{name: outcome[name] for name in kept},
    )  # fmt: skip


def _know(store: Store, planned: Plan) -> None:
    """Keep what the tables need to know of the data: never pixels."""
    for identity, run in {r.data_identity: r for r in planned.runs if r.kind == "distilled"}.items():
        dataset = planned.data[run.data]
        known = {name: dataset.fingerprint[name] for name in ("splits", "size", "channels")}
        known["classes"] = list(dataset.description.class_names)
        store.know(identity, run.data, run.group, known)
