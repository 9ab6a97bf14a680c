"""``distill``: from a data set to a package."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medistill import __version__
from medistill.config import DataConfig, DistilConfig, EvaluateConfig, build, mapping
from medistill.data.checks import require_usable
from medistill.data.load import load
from medistill.data.preprocess import Prepared, prepare
from medistill.distil import loop
from medistill.distil.checkpoint import Checkpoint, RunFolder, Saver
from medistill.distil.method import Method, State, make_method
from medistill.distil.presets import read_preset
from medistill.distil.problem import Problem, make_problem
from medistill.errors import ConfigError, PackageError
from medistill.keys import Key
from medistill.package.container import is_package
from medistill.package.package import Package, read_package, write_package
from medistill.progress import Progress, say
from medistill.runtime import prepare_torch
from medistill.types import Json

DEFAULT_METHOD = "dm"


def distill(
    data: str | Path,
    *,
    out: str | Path,
    method: str | None = None,
    ipc: int | None = None,
    ratio: float | None = None,
    seed: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    evaluate: bool = False,
    evaluate_config: EvaluateConfig | None = None,
    progress: bool = False,
) -> Json:
    """Distil a data set into a package; the same call again resumes, or finds it finished.

    Args:
        data: path, folder, MedMNIST name or phantom.
        out: the package: a folder, or a file ending in ``.zip``. What is recorded of the run
            lies beside it, in ``<out>.run``.
        method: name of a method; see ``medistill methods``.
        ipc: images per class, or
        ratio: distilled images per training image, in (0, 1).
        preset: "paper" or "quick", a file of the method's settings; see ``medistill.distil.presets``.
        seed: of everything random; 0 if neither this nor the settings name one.
        settings: further settings, ``{"method": {...}, "data": {...}}``.
        fresh: start over, replacing what is there.
        evaluate: also evaluate, and write the results into the package.
        evaluate_config: how, if so.
        progress: show progress on standard error.

    Returns:
        ``package`` (its path), ``package_id``, ``images``, ``per_class``, ``warnings``, ``cost``, and
        ``evaluation`` if it was asked for.

    Raises:
        DataError, ConfigError, OutputError: one line each that says what to do; nothing is left half-written.
    """
    prepare_torch()
    folder = RunFolder(Path(out))
    out = folder.out
    _require_apart(out, data)
    chosen, config = _configure(method, ipc, ratio, seed, preset, settings or {})
    prepared, warnings = _prepare(data, config.data)
    problem = make_problem(prepared, config.ipc, config.ratio)
    warnings += _short_classes(prepared, problem)
    for warning in warnings:
        say(f"warning: {warning}", progress)
    identity = _identity(config, prepared)
    folder.open(identity, fresh)
    if folder.read_cost() is None or not is_package(out):
        checkpoint = _learn(chosen, problem, config, folder, progress)
        package = _pack(out, chosen, problem, checkpoint.state, config, prepared)
        folder.finish(checkpoint)
    else:
        package = _finished(out, identity)
        folder.drop_checkpoint()
        say(f"{out} is finished already; --fresh makes it anew", progress)
    result: Json = {
        "package": str(out),
        "package_id": package.identity,
        "images": len(package.labels),
        "per_class": package.manifest["images"]["per_class"],
        "bytes": package.size_bytes,
        "method": chosen.info.name,
        "contains_real_images": chosen.info.contains_real_images,
        "warnings": warnings,
        "cost": folder.read_cost(),
    }
    if evaluate:
        from medistill.commands.evaluate import evaluate as measure

        result["evaluation"] = measure(out, on=data, config=evaluate_config, attach=True, progress=progress)
        result["package_id"] = read_package(out).identity
    return result


def _configure(
    method: str | None,
    ipc: int | None,
    ratio: float | None,
    seed: int | None,
    preset: str | None,
    settings: Mapping[str, Any],
) -> tuple[Method, DistilConfig]:
    values = dict(settings)
    given = values.get("method", {})
    named = {"name": given} if isinstance(given, str) else dict(mapping(given, "method"))
    if method is not None or "name" not in named:
        named["name"] = method or DEFAULT_METHOD
    if preset is not None:
        named = {**read_preset(str(named["name"]), preset), **named}
    chosen = make_method(named)
    values["method"] = chosen.configuration()
    # What is given on the command line wins over a file; ipc and ratio stand for one another there.
    if ipc is not None or ratio is not None:
        values |= {"ipc": ipc, "ratio": ratio}
    if seed is not None:
        values["seed"] = seed
    values["data"] = mapping(values.get("data"), "data")
    return chosen, build(DistilConfig, values)


def _require_apart(out: Path, data: str | Path) -> None:
    """The package must not replace the images it is made of, nor lie among them."""
    source = Path(data).expanduser()
    if not source.exists():
        return
    source, target = source.resolve(), out.resolve()
    if target == source or target in source.parents or (source.is_dir() and source in target.parents):
        raise ConfigError(
            "lies among the data, or the data in it", where=out, remedy="give --out a place outside the data folder"
        )


def _finished(out: Path, identity: Json) -> Package:
    remedy = "--fresh makes it anew"
    try:
        package = read_package(out)
    except PackageError as problem:
        raise PackageError(f"was made by this command and changed since ({problem})", remedy=remedy) from problem
    known = (package.manifest["configuration"], package.manifest["data"]["fingerprint"])
    if known != (identity["configuration"], identity["data"]):
        raise PackageError("is not the package that this command made", where=out, remedy=remedy)
    return package


def _prepare(data: str | Path, config: DataConfig) -> tuple[Prepared, list[str]]:
    dataset = load(data, config)
    warnings = [f"{p.kind}: {p.found}" for p in require_usable(dataset)]
    return prepare(dataset, config), warnings


def _short_classes(prepared: Prepared, problem: Problem) -> list[str]:
    most = max(problem.counts)
    return [
        f"small class: '{prepared.class_names[label]}' has {size} training images and gives {size}, not {most}"
        for label, size in enumerate(problem.sizes)
        if size < most
    ]


def _identity(config: DistilConfig, prepared: Prepared) -> Json:
    return {
        "medistill": __version__,
        "configuration": config.model_dump(mode="json"),
        "data": prepared.dataset.fingerprint["sha256"],
        "class_names": list(prepared.class_names),
        "flips": prepared.dataset.description.flips,
    }


def _learn(method: Method, problem: Problem, config: DistilConfig, folder: RunFolder, progress: bool) -> Checkpoint:
    key = Key(config.seed).child("distil")
    checkpoint, steps = folder.load(), method.steps(problem)
    pieces = method.preparations(problem)
    with Progress(f"preparing {method.info.name}", pieces, enabled=progress and pieces > 0) as shown:
        method.prepare(problem, key, shown.advance)
    if checkpoint is None:
        started = time.monotonic()
        state = loop.start(method, problem, key)
        checkpoint = Checkpoint(state, time.monotonic() - started)
    else:
        say(f"resuming at step {checkpoint.state.step} of {steps}", progress)
    saver = Saver(folder, checkpoint)
    label = f"distilling with {method.info.name}"
    with Progress(label, steps, checkpoint.state.step, progress and steps > 0) as shown:

        def after_step(state: State, loss: float) -> None:
            saver(state, loss)
            shown.advance(1, f"loss {loss:.4g}")

        loop.run(method, problem, key, checkpoint.state, after_step)
    folder.save(checkpoint)
    return checkpoint


def _pack(
    out: Path, method: Method, problem: Problem, state: State, config: DistilConfig, prepared: Prepared
) -> Package:
    description = prepared.dataset.description
    manifest: Json = {
        "class_names": list(prepared.class_names),
        "preprocessing": prepared.preprocessing.as_json(),
        "flips": description.flips,
        "method": {**method.configuration(), "title": method.info.title, "bibtex": method.info.bibtex},
        "configuration": config.model_dump(mode="json"),
        "seed": config.seed,
        "data": {
            "name": description.name,
            "fingerprint": prepared.dataset.fingerprint["sha256"],
            "training_images": len(prepared.train),
            "per_class": prepared.counts,
            "licence": description.licence,
            "source": description.source,
            "notes": list(description.notes),
        },
        "contains_real_images": method.info.contains_real_images,
        "starts_from_real_images": method.starts_from_real_images,
        "evaluation": None,
    }
    pixels = problem.quantise(state.images).numpy()
    return write_package(out, Package(pixels, state.labels.numpy(), manifest))
