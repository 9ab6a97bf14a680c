"""Differential privacy of a distillation: what may be asked for, how much noise that takes, what a package says."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from medistill.aliases import Json
from medistill.config import DataConfig, DistilConfig, PrivacyConfig
from medistill.data.dataset import Dataset
from medistill.data.preprocess import PreparedDataset, prepared_shape, require_public_steps
from medistill.distil.configuration import configured
from medistill.distil.method import Method, State
from medistill.distil.pool import PooledMatching
from medistill.distil.private_images import CENTRE_CLIP, Mechanism, Unit, spent_as
from medistill.errors import ConfigError
from medistill.package.manifest import GuaranteeSection
from medistill.privacy.accounting import epsilon_of, noise_multiplier

PUBLIC = [
    "names of classes and what labels mean",
    "size, channels, spacing and type of images, the window of intensities, and which mirror images keep their class",
    "name, source and licence of the data set, and whether it is a published one",
    "which images are validation and test images, and that these took no part",
    "whether patients are known",
    "settings and seed, and that the command succeeded",
]
"""What everybody is taken to know."""


def require_private(method: Method, config: DistilConfig) -> None:
    """Refuse what sees real images without noise.

    Raises:
        ConfigError: such a method, first images or labels.
    """
    if not method.info.private:
        raise ConfigError(
            f"{method.info.name} asks real images again and again", where="--epsilon",
            allowed="methods that ask once: dm", remedy="leave --method out, or --epsilon",
        )  # fmt: skip
    if method.queries != method.info.queries:
        raise ConfigError("real, which shows patients", where="method.start", allowed="noise, under --epsilon")
    if getattr(method, "precision", "float32") != "float32":
        raise ConfigError(
            "bfloat16, whose rounding moves other images too",
            where="method.precision",
            allowed="float32, under --epsilon",
        )
    if config.labels.teachers:
        raise ConfigError(
            f"{config.labels.teachers}, which see real images without noise", where="--teachers",
            allowed="0 under --epsilon",
        )  # fmt: skip


def mechanism_for(config: PrivacyConfig, prepared: PreparedDataset) -> Mechanism:
    """The noise that a guarantee takes, for images or for patients.

    Raises:
        ConfigError: patients are to be hidden, and the data name none; an ε that cannot be.
    """
    multiplier = noise_multiplier(config.epsilon, config.delta)
    return spent_as(config, unit_of(config, prepared.dataset), multiplier)


def unit_of(config: PrivacyConfig, dataset: Dataset) -> Unit:
    """Whose presence is hidden: what was asked for, else patients where they are known.

    Raises:
        ConfigError: patients are asked for, and not known.
    """
    known = dataset.train.patients is not None
    if config.unit == "patient" and not known:
        raise ConfigError(
            "patient, and the data do not say whose each image is", where="--unit",
            allowed="image, or data with a patient for each training image",
        )  # fmt: skip
    return config.unit or ("patient" if known else "image")


def delta_warning(config: PrivacyConfig, prepared: PreparedDataset) -> list[str]:
    """What is to be told where δ is so large that showing one image whole would keep the guarantee."""
    images = len(prepared.train)
    if config.delta * images < 0.1:
        return []
    return [f"privacy: δ = {config.delta:g} is not far below one in {images}, the number of training images"]


BEARABLE = 0.5
"""Noise in the mean embedding of a stratum, as a share of the longest embedding, up to which little was lost; see
docs/explanation/privacy.md, "Which ε can a data set bear?"."""

EPSILONS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 20.0)
"""Among which the least is told that a data set can bear."""


def outlook(dataset: Dataset, config: PrivacyConfig, data: DataConfig) -> Json:
    """Which ε a data set can bear, from its size, its classes and the length at which embeddings are cut alone.

    The noise in the mean of a stratum of n units is ``σ √(1 + w²) √d / n`` long, where d numbers are released of it
    and the longest embedding has length 1.

    Args:
        dataset: the data; nothing is computed of its images.
        config: what is asked for.
        data: how they are read.

    Returns:
        ``epsilon``, ``delta``, ``unit``, ``noise_multiplier``, ``noise`` (by stratum), ``bearable`` (whether all are
        at most :data:`BEARABLE`), ``least_epsilon`` (that all strata bear; None where 20 is not enough).

    Raises:
        ConfigError: as for ``distill``.
    """
    require_public_steps(data)
    shape = prepared_shape(dataset.image.shape, data.size)
    method, _ = configured(None, 1, None, None, {"privacy": config.model_dump()}, {}, shape=shape)
    assert isinstance(method, PooledMatching)
    unit, task = unit_of(config, dataset), dataset.task
    numbers = method.released_numbers(data.channels or dataset.image.channels, shape, task.outputs)
    units = _units(dataset, unit)

    def noise(epsilon: float) -> list[float]:
        mechanism = spent_as(config, unit, noise_multiplier(epsilon, config.delta))
        length = mechanism.multipliers[1] * mechanism.sensitivity * math.sqrt(numbers)
        return [length / max(n, 1e-9) for n in units]

    found = noise(config.epsilon)
    enough = [epsilon for epsilon in EPSILONS if max(noise(epsilon)) <= BEARABLE]
    return {
        "epsilon": config.epsilon, "delta": config.delta, "unit": unit,
        "noise_multiplier": noise_multiplier(config.epsilon, config.delta),
        "noise": {name: round(value, 3) for name, value in zip(task.strata, found, strict=True)},
        "bearable": max(found) <= BEARABLE, "least_epsilon": enough[0] if enough else None,
    }  # fmt: skip


def offer(dataset: Dataset, data: DataConfig) -> Json | None:
    """The least ε whose noise a data set can bear, for who asked for no guarantee; see :func:`outlook`.

    Returns:
        ``epsilon`` (None where 20 is not enough), ``delta`` and ``unit``; None where no guarantee can be given, as
        steps that look at training images are asked for.
    """
    try:
        found = outlook(dataset, PrivacyConfig(epsilon=EPSILONS[-1]), data)
    except ConfigError:
        return None
    return {"epsilon": found["least_epsilon"], "delta": found["delta"], "unit": found["unit"]}


def _units(dataset: Dataset, unit: Unit) -> list[float]:
    """What all training images or patients weigh in each stratum, as a release counts them."""
    train = dataset.train
    membership = dataset.task.membership(train.targets).astype(float)
    weights = 1 / np.sqrt(np.maximum(membership.sum(axis=1), 1))
    if unit == "patient" and train.patients is not None:
        numbers = np.unique(train.patients, return_inverse=True)[1]
        weights /= np.bincount(numbers)[numbers]
    return [float(total) for total in (membership * weights[:, None]).sum(axis=0)]


def release_entry(mechanism: Mechanism, state: State, identity: Json) -> Json:
    """What is recorded of a release: how much noise, for whom, of which data, and what tells it from others."""
    released = state.buffers["means"].cpu().contiguous().numpy()
    return {
        "noise_multiplier": mechanism.noise_multiplier, "unit": mechanism.unit, "data": identity["data"],
        "sha256": hashlib.sha256(released.data).hexdigest(),
    }  # fmt: skip


def earlier_releases(releases: Sequence[Json], mechanism: Mechanism, delta: float, overwrite: bool) -> list[str]:
    """What is to be told where private data were asked before for the same package.

    Args:
        releases: that were recorded, none of which is at hand any more.
        mechanism, delta: of the next one.
        overwrite: whether somebody wants to ask again.

    Raises:
        ConfigError: nobody said so.
    """
    if not releases:
        return []
    asked = (
        f"real images were asked {len(releases)} times before" if releases[1:] else "real images were asked before"
    )
    if not overwrite:
        raise ConfigError(
            f"{asked}, and what they answered is gone", where="--out",
            remedy="put the package back where it was; --overwrite asks again, and both together tell more",
        )  # fmt: skip
    if any(entry.get("unit") != mechanism.unit for entry in releases):
        return [f"privacy: {asked}, to hide another unit; no common ε is told"]
    sigmas = [float(entry["noise_multiplier"]) for entry in releases] + [mechanism.noise_multiplier]
    together = 1 / math.hypot(*(1 / sigma for sigma in sigmas))  # as of one release with less noise
    return [
        f"privacy: {asked}. For whoever is in the data each time, all together have "
        f"ε = {epsilon_of(together, delta):.3g} at δ = {delta:g}, also if only the best package is given away"
    ]


def guarantee_section(config: PrivacyConfig, mechanism: Mechanism, state: State) -> GuaranteeSection:
    """What the manifest says, from the state after the release."""
    clip, share = float(state.buffers["clip"]), mechanism.centre_share
    return GuaranteeSection(
        epsilon=config.epsilon, delta=config.delta, unit=mechanism.unit, noise_multiplier=mechanism.noise_multiplier,
        sensitivity=mechanism.sensitivity, clip=clip,
        numbers=_released(mechanism, state), centre_share=share,
        centre_clip=CENTRE_CLIP * clip / mechanism.clip if share else 0.0, public=PUBLIC,
    )  # fmt: skip


def _released(mechanism: Mechanism, state: State) -> int:
    """Of each stratum, and where their mean was asked for once more: an embedding by each network, and a count."""
    strata = len(state.buffers["counts"])
    each = state.buffers["means"].numel() // strata + 1
    return each * (strata + (1 if mechanism.centre_share else 0))
