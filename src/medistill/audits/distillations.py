"""The package's method, followed on other data: what audits distil."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels, SoftLabels
from medistill.audits.audit import NotMeasuredError
from medistill.config import OptimiserConfig, PrivacyConfig, build
from medistill.data.preprocess import TensorSplit
from medistill.distil import loop
from medistill.distil.duration import learning_seconds
from medistill.distil.memory import WorkPlan, planned
from medistill.distil.method import LearnedMethod, Method, make_method
from medistill.distil.optimiser import Optimiser
from medistill.distil.private_images import PrivateRealImages, patient_numbers, spent_as
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import RealImages
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.package.package import Package
from medistill.parallel import Workers
from medistill.runtime import device, own_cores

VERSION = 1
"""Raised whenever the same shadow would be another."""


@dataclass(frozen=True)
class StoredImages:
    """A shadow's images as stored, what they stand for, and labels that were learned."""

    pixels: Pixels
    targets: npt.NDArray[np.uint8]
    strata: npt.NDArray[np.int64]
    learned: SoftLabels | None


def shadow_method(package: Package, iterations: int) -> Method:
    """The package's method with its settings, and at most so many iterations.

    Raises:
        ConfigError: it is not known here, or has other settings.
    """
    section = package.manifest.method
    method = make_method({"name": section.name, **section.settings})
    if isinstance(method, LearnedMethod) and section.steps:
        fewer = min(iterations, method.iterations or section.steps)
        method = method.model_copy(update={"iterations": fewer})
    return method


def distilled_from(
    package: Package,
    data: TensorSplit,
    patients: npt.NDArray[np.str_] | None,
    iterations: int,
    key: Key,
) -> StoredImages:
    """Images that the package's method learns from other data, taken from the cache where they are kept there.

    Args:
        package: whose method, settings, storage and numbers of images are followed.
        data: what is distilled; where a stratum has too few images, as many as there are.
        patients: whose its images are.
        iterations: at most.
        key: of all randomness.
    """
    task, method, where = package.task, shadow_method(package, iterations), device()
    counts = _counts(package, data)
    configuration = package.manifest.provenance.configuration.model_dump(mode="json")
    identity = sha256_text(
        canonical_json(
            {
                "version": VERSION, "method": method.configuration(), "data": data.digest, "counts": counts,
                "optimiser": configuration.get("optimiser"), "seed": [key.seed, *key.path], "task": task.kind,
                "stored": package.stored_shape, "image": package.manifest.image.model_dump(mode="json"),
                "device": where.type,
            }
        )
    )  # fmt: skip
    kept = read_cached("shadows", identity)
    if kept is None:
        plan, optimiser = _planned(package, method, data, patients)
        method.prepare(plan.problem, key, lambda _: None)
        state = loop.start(method, plan.problem, key, optimiser)
        state = loop.run(method, plan.problem, key, state, None, plan.strata, None, optimiser).to("cpu")
        kept = {"pixels": plan.problem.quantise(state.images), "targets": state.targets}
        if state.label_logits is not None:
            kept["learned"] = task.probabilities(state.label_logits).half().float()
        write_cached("shadows", identity, kept)
    learned = kept["learned"].numpy() if "learned" in kept else None
    strata = np.repeat(np.arange(len(counts)), counts)
    return StoredImages(kept["pixels"].numpy(), kept["targets"].numpy(), strata, learned)


def _counts(package: Package, data: TensorSplit) -> tuple[int, ...]:
    if package.manifest.privacy.guarantee is not None:
        return tuple(package.synthetic_per_stratum)
    there = package.task.counts(data.targets)
    return tuple(min(pair) for pair in zip(package.synthetic_per_stratum, there, strict=True))


def _planned(
    package: Package, method: Method, data: TensorSplit, patients: npt.NDArray[np.str_] | None
) -> tuple[WorkPlan, Optimiser]:
    real = RealImages(data, package.task, package.preprocessing.normalisation, device(), patients)
    if (guarantee := package.manifest.privacy.guarantee) is not None:
        # As the package was made: asked once, with noise, of its own in each shadow.
        if guarantee.unit == "patient" and patients is None:
            raise NotMeasuredError("its guarantee is for patients, and the data do not name any")
        mechanism = spent_as(_spending(package), guarantee.unit, guarantee.noise_multiplier)
        real = PrivateRealImages(real, patient_numbers(patients), mechanism)
    problem = DistillationProblem(real, _counts(package, data), package.stored_shape, device())
    plan = planned(method, problem.worked_by(Workers(own_cores())), data.pixels.nbytes / 1e6, None)
    asked = package.manifest.provenance.configuration.model_dump(mode="json").get("optimiser") or {}
    return plan, method.optimiser(plan.problem).configured(build(OptimiserConfig, asked, "optimiser"))


def _spending(package: Package) -> PrivacyConfig:
    """How the budget is spent."""
    recorded = package.manifest.provenance.configuration.model_dump(mode="json").get("privacy")
    return build(PrivacyConfig, recorded or {}, "privacy")


def distilling_seconds(package: Package, data: TensorSplit, iterations: int, key: Key) -> float:
    """How long :func:`distilled_from` takes, about, where nothing is kept; of a method that prepares its steps, as by
    training experts, the preparation, without which no step can be tried.
    """
    method = shadow_method(package, iterations)
    plan, optimiser = _planned(package, method, data, None)
    if method.preparations(plan.problem):
        return method.preparing_seconds(plan.problem, key)
    state = loop.start(method, plan.problem, key, optimiser)
    return learning_seconds(method, plan.problem, key, state, plan.strata, optimiser)
