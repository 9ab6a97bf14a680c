"""``distill``: from a data set to a package."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medistill import __version__
from medistill.aliases import Json, SoftLabels
from medistill.audits.audit import audit_when_packing
from medistill.commands.guarantee import (
    delta_warning,
    earlier_releases,
    mechanism_for,
    offer,
    release_entry,
    require_private,
)
from medistill.commands.manifest import manifest_of
from medistill.config import DataConfig, DistilConfig, EvaluateConfig
from medistill.data.checks import require_no_letters, require_usable
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, prepare, require_depth
from medistill.distil import loop
from medistill.distil.checkpoint import Checkpoint, RunFolder, Saver, determining
from medistill.distil.configuration import configured, optimiser_of
from medistill.distil.duration import learning_seconds
from medistill.distil.group import Group, join
from medistill.distil.memory import WorkPlan, parse_limit, planned
from medistill.distil.method import Method, State
from medistill.distil.optimiser import Optimiser
from medistill.distil.private_images import PrivateRealImages
from medistill.distil.problem import DistillationProblem, make_problem
from medistill.errors import ConfigError, PackageError
from medistill.evaluation.duration import Pace
from medistill.evaluation.teachers import label_seconds, soft_labels, training_ways
from medistill.files import require_apart
from medistill.keys import Key
from medistill.package.container import is_package
from medistill.package.guarantee import guaranteed
from medistill.package.package import Package, read_package, write_package
from medistill.parallel import Workers
from medistill.progress import Progress, duration, say
from medistill.runtime import device, give_memory_back, machine_memory_mb, own_cores, prepare_torch

REAL_START = (
    "start: images are computed from real ones and can stay recognisable, so the package may show patients; "
    "--set method.start=noise starts from noise"
)


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
    epsilon: float | None = None,
    delta: float | None = None,
    unit: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    evaluate: bool = False,
    evaluate_config: EvaluateConfig | None = None,
    audit: bool = False,
    audit_settings: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = False,
) -> Json:
    """Distil a data set into a package; the same call again resumes, or finds it finished.

    Args:
        data: path, folder, MedMNIST name or phantom.
        out: the package: a folder, or a file ending in ``.zip``. What is recorded of the run
            lies beside it, in ``<out>.run``.
        method: name of a method at its plain settings; see ``medistill methods``. Where none is named,
            the recommended configuration of ``medistill/recipes/default.yaml`` is taken.
        ipc: images per class, grade or finding, or
        ratio: distilled images per training image, in (0, 1).
        factor: store images at 1/factor of the side, factor² pictures or factor³ volumes in the bytes of one.
        teachers: networks, trained on the real images, whose probabilities become the labels; 0 for plain classes.
        memory_limit: as "3GB": stay under it while distilling, or refuse with what is needed; ``evaluate`` takes
            its own. Without one a CPU's memory is kept under 4 GB where that can be done.
        epsilon, delta: differential privacy to guarantee; without an ε there is none. δ is 1e-5 if not given.
        unit: what neighbouring data sets differ by: an image, or all of a patient's; by patient where patients are
            known, if not given.
        preset: "paper", the published settings of the method; see ``medistill.distil.presets``.
        seed: of everything random; 0 if neither this nor the settings name one.
        settings: further settings, ``{"method": {...}, "optimiser": {...}, "data": {...}}``.
        overwrite: start over, replacing what is there.
        evaluate: also evaluate, and write the results into the package.
        evaluate_config: how, if so.
        audit: also run every audit check on the training data, and write the findings into the package.
        audit_settings: options of checks by name, if so.
        progress: show progress on standard error.

    Returns:
        ``package`` (its path), ``package_id``, ``images``, ``per_stratum``, ``audits`` (what was measured of what it
        gives away), ``guarantee`` (sentences), ``offer`` (without ``epsilon``: the least ε with little noise, see
        :func:`medistill.commands.guarantee.offer`), ``contains_real_images``, ``warnings``, ``cost``, and
        ``evaluation`` if it was asked for. Under ``torchrun`` only the first process returns this; the others share
        the work.

    Raises:
        DataError, ConfigError, OutputError: one line each that says what to do; nothing is left half-written.
    """
    prepare_torch()
    group = join()
    progress = progress and group.is_main
    folder = RunFolder(Path(out))
    out = folder.out
    require_apart(out, "--out", data)
    limit = None if memory_limit is None else parse_limit(memory_limit)
    private = {"privacy.epsilon": epsilon, "privacy.delta": delta, "privacy.unit": unit}
    given = {"factor": factor, "seed": seed, "labels.teachers": teachers, "memory_limit_mb": limit, **private}
    asked = (method, ipc, ratio, preset, settings or {}, given)
    chosen, config = configured(*asked)
    prepared, warnings = _prepare(data, config.data, config.privacy is not None, chosen.starts_from_real_images)
    chosen, config = configured(*asked, shape=prepared.preprocessing.image.shape)
    refusal = chosen.info.refusal(prepared.task, prepared.preprocessing.image.dimensions)
    if refusal:
        raise ConfigError(refusal, where="--method", remedy="see `medistill methods` for what each is made for")
    mechanism = None
    if config.privacy is not None:
        require_private(chosen, config)
        mechanism = mechanism_for(config.privacy, prepared)
        warnings += delta_warning(config.privacy, prepared)
    problem = make_problem(prepared, config.ipc, config.ratio, config.factor, device(), mechanism)
    problem = problem.worked_by(Workers(own_cores()))
    teaching = training_ways(prepared.train, prepared.task.outputs, config.labels, problem.device)
    # How work is divided changes rounding, so it must not follow from how many private images there are.
    held = prepared.memory_mb if mechanism is None else 0.0
    plan = planned(chosen, problem, held, config.memory_limit_mb, teaching)
    warnings += _warnings(chosen, prepared, problem, plan)
    group.require_divisible(chosen)
    identity = _identity(config, prepared)
    if mechanism is not None:
        prepared = prepared.without_images()
    say(f"distilling takes about {plan.needed_mb:.0f} MB of memory", progress)
    if not group.is_main:
        _run_worker(chosen, plan, config, group)
        return {}
    for warning in warnings:
        say(f"warning: {warning}", progress)
    try:
        with folder.claimed(identity, overwrite):
            if folder.read_cost() is None or not is_package(out):
                if mechanism is not None and config.privacy is not None and folder.load() is None:
                    told = earlier_releases(folder.releases(), mechanism, config.privacy.delta, overwrite)
                    for warning in told:
                        say(f"warning: {warning}", progress)
                    warnings += told
                checkpoint = _learn(chosen, plan, config, prepared, folder, identity, group, progress)
                package = _pack(out, chosen, plan, checkpoint, config, prepared, progress)
                folder.finish(checkpoint)
            else:
                package = _finished(out, identity)
                folder.drop_checkpoint()
                say(f"{out} is finished already; --overwrite makes it anew", progress)
    finally:
        group.leave()
    result: Json = {
        "package": str(out),
        "package_id": package.identity,
        "images": len(package),
        "per_stratum": package.synthetic_per_stratum,
        "bytes": package.size_bytes,
        "method": chosen.info.name,
        "start": package.manifest.start,
        "contains_real_images": package.manifest.privacy.contains_real_images,
        "audits": [finding.model_dump(mode="json") for finding in package.manifest.audits],
        "guarantee": guaranteed(package.manifest),
        **({"offer": offer(prepared.dataset, config.data)} if config.privacy is None else {}),
        "warnings": warnings,
        "cost": folder.read_cost(),
    }
    if evaluate:
        from medistill.commands.evaluate import evaluate as measure

        result["evaluation"] = measure(out, on=data, config=evaluate_config, attach=True, progress=progress)
        package = read_package(out)
        result |= {"package_id": package.identity, "guarantee": guaranteed(package.manifest)}
    if audit:
        from medistill.commands.audit import audit as attack

        attacked = attack(out, train=data, settings=audit_settings, attach=True, progress=progress)
        result |= {name: attacked[name] for name in ("audits", "not_measured", "package_id")}
        result["guarantee"] = guaranteed(read_package(out).manifest)
    return result


def _finished(out: Path, identity: Json) -> Package:
    remedy = "--overwrite makes it anew"
    try:
        package = read_package(out)
    except PackageError as problem:
        raise PackageError(f"was made by this command and changed since ({problem})", remedy=remedy) from problem
    provenance = package.manifest.provenance
    # Private packages do not say of which data they are; the run's folder does, and was claimed for these.
    recorded = {
        "configuration": provenance.configuration.model_dump(mode="json"),
        "data": provenance.data.fingerprint or identity["data"],
    }
    if determining(recorded) != determining({name: identity[name] for name in recorded}):
        raise PackageError("is not the package that this command made", where=out, remedy=remedy)
    return package


def _prepare(data: str | Path, config: DataConfig, private: bool, real: bool) -> tuple[PreparedDataset, list[str]]:
    dataset = load(data, config)
    warnings = [f"{issue.kind}: {issue.found}" for issue in require_usable(dataset, private=private)]
    if real and config.burned_in_text == "refused":
        require_no_letters(dataset)
    require_depth(dataset, config)
    return prepare(dataset, config), warnings


def _warnings(method: Method, prepared: PreparedDataset, problem: DistillationProblem, plan: WorkPlan) -> list[str]:
    task, most = prepared.task, max(problem.synthetic_per_stratum)
    warnings = [
        f"small {task.noun}: '{task.strata[stratum]}' has {size} training images and gives {size}, not {most}"
        for stratum, size in enumerate(problem.real_per_stratum)
        if 0 < size < most and not isinstance(problem.real, PrivateRealImages)
    ]
    if method.starts_from_real_images and not method.info.contains_real_images:
        warnings.append(REAL_START)
    there = machine_memory_mb()
    if there is not None and plan.needed_mb > there and problem.device.type == "cpu":
        # Told, not refused: what the system can swap, only it knows.
        warnings.append(
            f"memory: distilling takes about {plan.needed_mb:.0f} MB and this machine has {there:.0f}; "
            "--memory-limit divides the work, or says what is needed at least"
        )
    return warnings


def _identity(config: DistilConfig, prepared: PreparedDataset) -> Json:
    return {
        "medistill": __version__,
        "configuration": config.model_dump(mode="json"),
        "data": prepared.dataset.fingerprint["sha256"],
        "task": prepared.task.kind,
        "class_names": list(prepared.class_names),
        "flips": prepared.normalisation.flips,
    }


def _label_seconds(
    problem: DistillationProblem, prepared: PreparedDataset, config: DistilConfig, max_workers: int
) -> float:
    """How long teachers take to be trained and to say what the images' labels are."""
    labels, task, seen = config.labels, prepared.task, prepared.normalisation
    if not labels.teachers:
        return 0.0
    train = prepared.train
    pace, images = Pace(train, task, seen, labels.recipe), [sum(problem.synthetic_per_stratum)]
    return label_seconds(pace, train, images, task, seen, labels, config.seed, max_workers)


def _learn(
    method: Method,
    plan: WorkPlan,
    config: DistilConfig,
    prepared: PreparedDataset,
    folder: RunFolder,
    identity: Json,
    group: Group,
    progress: bool,
) -> Checkpoint:
    problem = plan.problem
    key, optimiser = Key(config.seed).child("distil"), optimiser_of(method, config, problem)
    checkpoint, steps = folder.load(), method.steps(problem)
    pieces = method.preparations(problem)
    started = time.monotonic()
    preparing = method.preparing_seconds(problem, key) if progress and pieces else 0.0
    if preparing:
        say(f"preparing {method.info.name} takes about {duration(preparing)}", progress)
    with Progress(f"preparing {method.info.name}", pieces, enabled=progress and pieces > 0) as shown:
        method.prepare(problem, key, shown.advance)
    if checkpoint is None:
        checkpoint = Checkpoint(_start(method, problem, key, optimiser, progress), time.monotonic() - started)
        if isinstance(problem.real, PrivateRealImages):
            folder.save(checkpoint)  # what was released is kept before it is used: nobody asks again
    else:
        if isinstance(problem.real, PrivateRealImages):
            problem.real.close()
        checkpoint.state = checkpoint.state.to(problem.device)
        say(f"resuming at step {checkpoint.state.step} of {steps}", progress)
    if isinstance(problem.real, PrivateRealImages):
        folder.record_release(release_entry(problem.real.mechanism, checkpoint.state, identity))
    group.broadcast(checkpoint.state.to("cpu"))
    if progress and group.size == 1:
        seconds = learning_seconds(method, problem, key, checkpoint.state, plan.strata, optimiser)
        seconds += _label_seconds(problem, prepared, config, plan.max_workers)
        say(f"distilling takes about {duration(seconds)}", seconds > 0)
    saver = Saver(folder, checkpoint)
    label = f"distilling with {method.info.name}"
    with Progress(label, steps, checkpoint.state.step, progress and steps > 0) as shown:

        def after_step(state: State, losses: list[float]) -> None:
            saver(state, losses)
            shown.advance(len(losses), f"loss {losses[-1]:.4g}")

        loop.run(method, problem, key, checkpoint.state, after_step, plan.strata, group, optimiser)
    group.leave()
    folder.save(checkpoint)
    return checkpoint


def _start(method: Method, problem: DistillationProblem, key: Key, optimiser: Optimiser, progress: bool) -> State:
    """The state before the first step; of private images with progress, as each is seen by every network."""
    if not isinstance(problem.real, PrivateRealImages):
        return loop.start(method, problem, key, optimiser)
    with Progress("asking the real images, once", problem.real.looks, enabled=progress) as shown:
        return loop.start(method, problem, key, optimiser, shown.advance)


def _run_worker(method: Method, plan: WorkPlan, config: DistilConfig, group: Group) -> None:
    """What every process but the first does: the same steps from the same state; nothing is read or written."""
    if isinstance(plan.problem.real, PrivateRealImages):
        plan.problem.real.close()  # the first process asks for all
    state = group.broadcast(None)
    if state is not None:
        key, optimiser = Key(config.seed).child("distil"), optimiser_of(method, config, plan.problem)
        there = state.to(plan.problem.device)
        loop.run(method, plan.problem, key, there, None, plan.strata, group, optimiser)
    group.leave()


def _pack(
    out: Path,
    method: Method,
    plan: WorkPlan,
    checkpoint: Checkpoint,
    config: DistilConfig,
    prepared: PreparedDataset,
    progress: bool,
) -> Package:
    state, problem = checkpoint.state.to("cpu"), plan.problem
    learned: SoftLabels | None = None
    if state.label_logits is not None:
        learned = prepared.task.probabilities(state.label_logits).half().float().numpy()
    package = Package(
        problem.quantise(state.images).numpy(),
        state.targets.numpy(),
        np.repeat(np.arange(problem.strata), problem.synthetic_per_stratum),
        manifest_of(method, problem, config, prepared, state),
        learned,
    )
    if config.labels.teachers:
        started = time.monotonic()
        give_memory_back()
        package = replace(package, soft_labels=_soft_labels(package, prepared, config, plan.max_workers, progress))
        checkpoint.seconds += time.monotonic() - started
    if config.privacy is not None:  # resemblance would be measured on real images, without noise
        return write_package(out, package)
    return write_package(out, package.with_findings(audit_when_packing(package, prepared, config.seed)))


def _soft_labels(
    package: Package, prepared: PreparedDataset, config: DistilConfig, max_workers: int, progress: bool
) -> SoftLabels:
    with Progress(f"training {config.labels.teachers} teachers", 0, enabled=progress) as shown:
        return soft_labels(
            prepared.train, [package.data.with_soft_labels(None)], prepared.task, package.preprocessing.normalisation,
            config.labels, config.seed, shown.reach, max_workers,
        )[0]  # fmt: skip
