"""The command line: parses, calls the function of the same name, prints. No logic lives here."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medistill.cli_study import study
from medistill.errors import MedistillError
from medistill.options import (
    RENAMED,
    Architectures,
    AsJson,
    Attach,
    Channels,
    Config,
    Data,
    Delta,
    Device,
    Epsilon,
    Flips,
    Ipc,
    On,
    Overwrite,
    PackagePath,
    Ratio,
    Renamed,
    Repeats,
    Seed,
    Set,
    SetData,
    Size,
    Task,
    TestSite,
    Threads,
    Unit,
    evaluate_config,
    print_result,
    privacy_config,
    renames,
    require_known,
)
from medistill.progress import reading_shown

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil a medical image data set into a few synthetic images that others can train on.",
)


def _settings(config: Path | None, assignments: list[str] | None) -> dict[str, Any]:
    from medistill.config import assign, read_yaml

    return assign(read_yaml(config) if config else {}, assignments or [])


def _data_settings(settings: dict[str, Any], **given: Any) -> dict[str, Any]:
    from medistill.config import mapping

    return {**mapping(settings.get("data"), "data"), **{k: v for k, v in given.items() if v is not None}}


def _data_config(assignments: list[str] | None, **given: Any) -> Any:
    from medistill.config import DataConfig, build

    settings = _settings(None, assignments)
    require_known(settings, ["data"])
    return build(DataConfig, _data_settings(settings, **given), "data")


@app.command()
def check(
    data: Data,
    ipc: Annotated[int | None, typer.Option(help="Images per class that you will ask for.")] = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    unit: Unit = None,
    size: Size = None,
    channels: Channels = None,
    flips: Flips = None,
    task: Task = None,
    test_site: TestSite = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page of tables and pictures.")] = None,
    set_: SetData = None,
    as_json: AsJson = False,
) -> None:
    """List every problem of a data set, and its fingerprint."""
    from medistill import check as run
    from medistill.texts import check_text

    asked = privacy_config(epsilon, delta, unit)
    settings = _data_config(set_, size=size, channels=channels, flips=flips, task=task, test_site=test_site)
    result = run(data, ipc=ipc, config=settings, privacy=asked, html=html)
    print_result(result, as_json, check_text)
    if not result["usable"]:
        raise typer.Exit(2)


@app.command()
def predict(
    data: Data,
    ipc: Ipc = None,
    ratio: Ratio = None,
    method: Annotated[str | None, typer.Option(help="Only this method, as studies name it.")] = None,
    db: Annotated[Path | None, typer.Option(help="A study's database to learn from too.")] = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    unit: Unit = None,
    seed: Seed = None,
    size: Size = None,
    channels: Channels = None,
    flips: Flips = None,
    task: Task = None,
    test_site: TestSite = None,
    set_: SetData = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say how well distilling will work, before it is done."""
    from medistill import predict as run
    from medistill.texts import predict_text

    config = _data_config(set_, size=size, channels=channels, flips=flips, task=task, test_site=test_site)
    asked = privacy_config(epsilon, delta, unit)
    result = run(
        data, ipc=ipc, ratio=ratio, method=method, db=db, config=config, privacy=asked, seed=seed or 0, progress=True
    )
    print_result(result, as_json, predict_text)


@app.command()
def distill(
    data: Data,
    out: Annotated[Path, typer.Option(help="The package: a folder, or a file ending in .zip.")],
    method: Annotated[
        str | None, typer.Option(help="See `medistill methods`; the recommended configuration if not given.")
    ] = None,
    ipc: Ipc = None,
    ratio: Ratio = None,
    factor: Annotated[
        int | None,
        typer.Option(
            help="Store images at 1/factor of the side, factor² pictures or factor³ volumes in the bytes of one."
        ),
    ] = None,
    teachers: Annotated[
        int | None, typer.Option(help="Networks trained on the real images that label the distilled ones; 0: none.")
    ] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Memory to stay under while distilling, as 3GB.")] = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    unit: Unit = None,
    seed: Seed = None,
    preset: Annotated[str | None, typer.Option(help="A file of the method's settings: paper, as published.")] = None,
    size: Size = None,
    channels: Channels = None,
    flips: Flips = None,
    task: Task = None,
    test_site: TestSite = None,
    config: Config = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also evaluate, and write the results into the package.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Also run every audit check, and write the findings into the package.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Distil a data set into a package. The same command again goes on where it stopped."""
    from medistill import distill as run
    from medistill.texts import distill_text

    settings = _settings(config, set_)
    measuring = evaluate_config({"evaluate": settings.pop("evaluate", {})}, None, None)
    auditing = settings.pop("audit", {})
    settings["data"] = _data_settings(
        settings, size=size, channels=channels, flips=flips, task=task, test_site=test_site
    )
    result = run(
        data, out=out, method=method, ipc=ipc, ratio=ratio, factor=factor, teachers=teachers,
        memory_limit=memory_limit, epsilon=epsilon, delta=delta, unit=unit,
        seed=seed, preset=preset, settings=settings, overwrite=overwrite,
        evaluate=evaluate, evaluate_config=measuring, audit=audit,
        audit_settings=auditing, progress=True,
    )  # fmt: skip
    if result:  # under torchrun one process speaks for all
        print_result(result, as_json, distill_text)


@app.command()
def evaluate(
    package: PackagePath,
    on: On,
    repeats: Repeats = None,
    architectures: Architectures = None,
    seed: Seed = None,
    config: Config = None,
    set_: Set = None,
    attach: Attach = False,
    rename_class: Renamed = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a package beside random images of the same number and the full data."""
    from medistill import evaluate as run
    from medistill.texts import evaluate_text

    settings = evaluate_config(_settings(config, set_), repeats, seed, architectures)
    how = {"config": settings, "attach": attach, "classes": renames(rename_class)}
    print_result(run(package, on=on, **how, progress=True), as_json, evaluate_text)


@app.command()
def train(
    package: PackagePath,
    on: On,
    repeats: Repeats = None,
    seed: Seed = None,
    config: Config = None,
    set_: Set = None,
    save: Annotated[Path | None, typer.Option(help="Write a trained network there (safetensors).")] = None,
    rename_class: Renamed = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train on a package alone and test on your own labelled images."""
    from medistill import train as run
    from medistill.texts import train_text

    settings = evaluate_config(_settings(config, set_), repeats, seed)
    how = {"config": settings, "save": save, "classes": renames(rename_class)}
    print_result(run(package, on=on, **how, progress=True), as_json, train_text)


@app.command()
def verify(package: PackagePath, as_json: AsJson = False) -> None:
    """Check that a package is whole, unaltered and safe to open."""
    from medistill import verify as run
    from medistill.texts import verify_text

    print_result(run(package), as_json, verify_text)


@app.command()
def audit(
    package: PackagePath,
    train: Annotated[
        str | None,
        typer.Option("--train", help="The data set it was made from; without it the package alone is looked at."),
    ] = None,
    checks: Annotated[str | None, typer.Option(help="Only these checks, as resemblance,membership.")] = None,
    config: Config = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of a check, as membership.shadows=16.")
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Write the findings into the package's manifest and card.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a package gives away. The same command again goes on where it stopped."""
    from medistill import audit as run
    from medistill.texts import audit_text

    names = None if checks is None else [name.strip() for name in checks.split(",")]
    settings = _settings(config, set_)
    result = run(package, train=train, checks=names, settings=settings, attach=attach, progress=True)
    print_result(result, as_json, audit_text)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: cost, whether real images are kept, settings, citation."""
    from medistill import methods as run
    from medistill.texts import methods_text

    entries = run()
    print_result({"methods": entries} if as_json else entries, as_json, methods_text)


@app.command()
def report(
    package: PackagePath,
    on: On,
    out: Annotated[Path | None, typer.Option(help="HTML file; else report.html beside the package.")] = None,
    rename_class: Renamed = None,
    repeats: Repeats = None,
    seed: Seed = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page that tells what a package is worth."""
    from medistill import report as run

    settings = evaluate_config(_settings(config, set_), repeats, seed)
    result = run(package, on=on, out=out, config=settings, classes=renames(rename_class), progress=True)
    print_result(result, as_json, lambda r: f"report: {r['report']}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the package and the report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    overwrite: Overwrite = False,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """The whole job on generated images; ends by naming the report."""
    from medistill import demo as run
    from medistill.texts import demo_text

    print_result(run(out=out, seed=seed, overwrite=overwrite, progress=True), as_json, demo_text)


app.add_typer(study, name="study")


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Distil a medical image data set into a few synthetic images that others can train on."""
    if not show and context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
    if show:
        from medistill import __version__

        sys.stdout.write(__version__ + "\n")
        raise typer.Exit


def main() -> None:
    """Entry point: our errors become one line and status 2; anything else keeps its traceback."""
    status = 0
    reading_shown.set(True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems end a job with it, as users with Ctrl-C
    try:
        status = app(standalone_mode=False) or 0
    except MedistillError as problem:
        sys.stderr.write(f"medistill: {problem}\n")
        status = 2
    except typer.TyperException as problem:  # unknown options, missing arguments
        text = " ".join(problem.format_message().split())
        now = RENAMED.get(getattr(problem, "option_name", ""))
        text = f"{text.partition(' (')[0]}; it is called {now} now" if now else f"{text}; see medistill --help"
        sys.stderr.write(f"medistill: {text}\n")
        status = 2
    except BrokenPipeError:
        # Whoever read our output stopped reading; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:
            raise
        sys.stderr.write(f"medistill: {str(problem.filename)[:60]}...: is no usable path ({problem.strerror})\n")
        status = 2
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        sys.stderr.write("medistill: stopped; the same command goes on from what was kept, if anything was\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
