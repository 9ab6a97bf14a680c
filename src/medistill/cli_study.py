"""The command line's ``study``: parses, calls the function of the same name, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medistill.options import AsJson, Device, print_result

study = typer.Typer(help="A grid of data, methods and sizes: run it, go on with it, report it.")
Db = Annotated[Path | None, typer.Option(help="The study's database; beside the file if not given.")]


@study.command("run")
def study_run(
    file: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    db: Db = None,
    data_folder: Annotated[Path | None, typer.Option(help="Where relative paths of data lead.")] = None,
    engine: Annotated[str, typer.Option(help="joblib on this machine, or ray or dask on a cluster.")] = "joblib",
    address: Annotated[str | None, typer.Option(help="Address of the cluster.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at once on this machine.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do again what failed before.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Run a study. The same command again goes on where it stopped."""
    from medistill import study_run as run
    from medistill.texts import study_text

    result = run(
        file, db=db, data_folder=data_folder, engine=engine, address=address, processes=processes, threads=threads,
        retry_failed=retry_failed, only_plan=plan, progress=True,
    )  # fmt: skip
    print_result(result, as_json, study_text)
    if result["failed"] and not result["done"]:
        raise typer.Exit(1)


@study.command("report")
def study_report(
    db: Annotated[Path, typer.Argument(help="The study's database.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; beside the database if not given.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for CSV, Parquet and LaTeX; else beside the page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study's results as one HTML page and as tables."""
    from medistill import study_report as run

    result = run(db, out=out, tables=tables)
    print_result(result, as_json, lambda r: f"tables: {r['tables']}\nreport: {r['report']}")
