"""``distill``: from a data set to a package."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill import __version__
from medistill.config import DataConfig, DistilConfig, EvaluateConfig, build, mapping
from medistill.data.checks import require_usable
from medistill.data.load import load
from medistill.data.preprocess import Prepared, prepare
from medistill.distil import loop
from medistill.distil.checkpoint import Checkpoint, RunFolder, Saver, determining
from medistill.distil.group import Group, join
from medistill.distil.memory import Plan, parse_limit, planned
from medistill.distil.method import Method, State, make_method
from medistill.distil.presets import default_settings, merged, read_preset
from medistill.distil.problem import Problem, make_problem
from medistill.errors import PackageError
from medistill.evaluation.teachers import soft_labels, training_ways
from medistill.files import require_apart
from medistill.keys import Key
from medistill.nets.training import Statistics
from medistill.package.container import is_package
from medistill.package.package import Package, read_package, write_package
from medistill.progress import Progress, say
from medistill.runtime import device, give_memory_back, machine_memory_mb, prepare_torch
from medistill.types import Json

DEFAULT_METHOD = "dm"


def distill(
    data: str | Path,
    *,
    out: str | Path,
    method: str | None = None,
    ipc: int | None = None,
    ratio: float | None = None,
    factor: int | None = None,
    teachers: int | None = None,
    memory_limit: str | None = None,
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
        method: name of a method at its plain settings; see ``medistill methods``. Where none is named,
            the recommended configuration of ``medistill/recipes/default.yaml`` is taken.
        ipc: images per class, or
        ratio: distilled images per training image, in (0, 1).
        factor: store images at 1/factor of the side, factor² of them in the bytes of one.
        teachers: networks, trained on the real images, whose probabilities become the labels; 0 for plain classes.
        memory_limit: as "3GB": stay under it while distilling, or refuse with what is needed; ``evaluate`` takes
            its own. Without one a CPU's memory is kept under 4 GB where that can be done.
        preset: "paper", the published settings of the method; see ``medistill.distil.presets``.
        seed: of everything random; 0 if neither this nor the settings name one.
        settings: further settings, ``{"method": {...}, "data": {...}}``.
        fresh: start over, replacing what is there.
        evaluate: also evaluate, and write the results into the package.
        evaluate_config: how, if so.
        progress: show progress on standard error.

    Returns:
        ``package`` (its path), ``package_id``, ``images``, ``per_class``, ``warnings``, ``cost``, and
        ``evaluation`` if it was asked for. Under ``torchrun`` the first process returns this, the others,
        which share the work on the images, return nothing.

    Raises:
        DataError, ConfigError, OutputError: one line each that says what to do; nothing is left half-written.
    """
    prepare_torch()
    group = join()
    progress = progress and group.first
    folder = RunFolder(Path(out))
    out = folder.out
    require_apart(out, "--out", data)
    limit = None if memory_limit is None else parse_limit(memory_limit)
    given = {"factor": factor, "seed": seed, "labels.teachers": teachers, "memory_limit_mb": limit}
    chosen, config = configured(method, ipc, ratio, preset, settings or {}, given)
    prepared, warnings = _prepare(data, config.data)
    problem = make_problem(prepared, config.ipc, config.ratio, config.factor, device())
    teaching = training_ways(prepared.train, prepared.classes, config.labels, problem.device)
    plan = planned(chosen, problem, prepared, config.memory_limit_mb, teaching)
    warnings += _short_classes(prepared, problem)
    there = machine_memory_mb()
    if there is not None and plan.needed_mb > there and problem.device.type == "cpu":
        warnings.append(_short_memory(plan, there))
    group.require_divisible(chosen)
    say(f"distilling takes about {plan.needed_mb:.0f} MB of memory", progress)
    if not group.first:
        _assist(chosen, plan, config, group)
        return {}
    for warning in warnings:
        say(f"warning: {warning}", progress)
    identity = _identity(config, prepared)
    try:
        with folder.claimed(identity, fresh):
            if folder.read_cost() is None or not is_package(out):
                checkpoint = _learn(chosen, plan, config, folder, group, progress)
                package = _pack(out, chosen, plan, checkpoint, config, prepared, progress)
                folder.finish(checkpoint)
            else:
                package = _finished(out, identity)
                folder.drop_checkpoint()
                say(f"{out} is finished already; --fresh makes it anew", progress)
    finally:
        group.leave()
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


def configured(
    method: str | None,
    ipc: int | None,
    ratio: float | None,
    preset: str | None,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    for_this_machine: bool = True,
) -> tuple[Method, DistilConfig]:
    """The method and the whole configuration that :func:`distill` follows when it is given these.

    Raises:
        ConfigError: an unknown method, preset or setting, or a value out of range.
    """
    values = dict(settings)
    asked = values.get("method", {})
    named = {"name": asked} if isinstance(asked, str) else dict(mapping(asked, "method"))
    if method is None and preset is None and "name" not in named:
        values = merged(default_settings(), {**values, "method": named})
        named = dict(values["method"])
    elif method is not None or "name" not in named:
        named["name"] = method or DEFAULT_METHOD
    if preset is not None:
        named = {**read_preset(str(named["name"]), preset), **named}
    chosen = make_method(named)
    if for_this_machine:
        chosen = chosen.for_this_machine()
    values["method"] = chosen.configuration()
    # What is given on the command line wins over a file; ipc and ratio stand for one another there.
    if ipc is not None or ratio is not None:
        values |= {"ipc": ipc, "ratio": ratio}
    for section in ("data", "labels"):
        values[section] = mapping(values.get(section), section)
    for name, value in given.items():
        if value is not None:
            *sections, last = name.split(".")
            (values[sections[0]] if sections else values)[last] = value
    return chosen, build(DistilConfig, values)


def _finished(out: Path, identity: Json) -> Package:
    remedy = "--fresh makes it anew"
    try:
        package = read_package(out)
    except PackageError as problem:
        raise PackageError(f"was made by this command and changed since ({problem})", remedy=remedy) from problem
    known = {"configuration": package.manifest["configuration"], "data": package.manifest["data"]["fingerprint"]}
    if determining(known) != determining({name: identity[name] for name in known}):
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


def _short_memory(plan: Plan, there_mb: float) -> str:
    """Told, not refused: what the system can swap, only it knows."""
    return (
        f"memory: distilling takes about {plan.needed_mb:.0f} MB and this machine has {there_mb:.0f}; --memory-limit "
        f"divides the work, or says what is needed at least"
    )


def _identity(config: DistilConfig, prepared: Prepared) -> Json:
    return {
        "medistill": __version__,
        "configuration": config.model_dump(mode="json"),
        "data": prepared.dataset.fingerprint["sha256"],
        "class_names": list(prepared.class_names),
        "flips": prepared.dataset.description.flips,
    }


def _learn(
    method: Method, plan: Plan, config: DistilConfig, folder: RunFolder, group: Group, progress: bool
) -> Checkpoint:
    problem = plan.problem
    key = Key(config.seed).child("distil")
    checkpoint, steps = folder.load(), method.steps(problem)
    pieces = method.preparations(problem)
    started = time.monotonic()
    with Progress(f"preparing {method.info.name}", pieces, enabled=progress and pieces > 0) as shown:
        method.prepare(problem, key, shown.advance)
    if checkpoint is None:
        state = loop.start(method, problem, key)
        checkpoint = Checkpoint(state, time.monotonic() - started)
    else:
        checkpoint.state = checkpoint.state.to(problem.device)
        say(f"resuming at step {checkpoint.state.step} of {steps}", progress)
    group.agreed(checkpoint.state.to("cpu"))
    saver = Saver(folder, checkpoint)
    label = f"distilling with {method.info.name}"
    with Progress(label, steps, checkpoint.state.step, progress and steps > 0) as shown:

        def after_step(state: State, losses: list[float]) -> None:
            saver(state, losses)
            shown.advance(len(losses), f"loss {losses[-1]:.4g}")

        loop.run(method, problem, key, checkpoint.state, after_step, plan.classes, group)
    group.leave()
    folder.save(checkpoint)
    return checkpoint


def _assist(method: Method, plan: Plan, config: DistilConfig, group: Group) -> None:
    """What every process but the first does: the same steps from the same state; nothing is read or written."""
    state = group.agreed(None)
    if state is not None:
        key = Key(config.seed).child("distil")
        loop.run(method, plan.problem, key, state.to(plan.problem.device), None, plan.classes, group)
    group.leave()


def _pack(
    out: Path,
    method: Method,
    plan: Plan,
    checkpoint: Checkpoint,
    config: DistilConfig,
    prepared: Prepared,
    progress: bool,
) -> Package:
    state = checkpoint.state.to("cpu")
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
    learned = None if state.label_scores is None else state.label_scores.softmax(1).half().float().numpy()
    package = Package(plan.problem.quantise(state.images).numpy(), state.labels.numpy(), manifest, learned)
    if config.labels.teachers:
        started = time.monotonic()
        give_memory_back()
        package = replace(package, soft_labels=_soft_labels(package, prepared, config, plan.side_by_side, progress))
        checkpoint.seconds += time.monotonic() - started
    return write_package(out, package)


def _soft_labels(
    package: Package, prepared: Prepared, config: DistilConfig, side_by_side: int, progress: bool
) -> npt.NDArray[np.float32]:
    statistics = Statistics(package.preprocessing.mean, package.preprocessing.std, package.manifest["flips"])
    with Progress(f"training {config.labels.teachers} teachers", 0, enabled=progress) as shown:
        return soft_labels(
            prepared.train, [package.part], statistics, prepared.classes, config.labels, config.seed, shown.reach,
            side_by_side,
        )[0]  # fmt: skip
