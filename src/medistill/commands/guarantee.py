"""Differential privacy of a distillation: what may be asked for, how much noise that takes, what a package says."""

from __future__ import annotations

import math

import numpy as np
import torch

from medistill.aliases import Json
from medistill.config import DataConfig, DistilConfig, PrivacyConfig, build, mapping
from medistill.data.dataset import Dataset
from medistill.data.preprocess import PreparedDataset, prepared_shape
from medistill.distil.configuration import configured
from medistill.distil.method import Method, State
from medistill.distil.pool import PooledMatching
from medistill.distil.private_images import Mechanism, Unit
from medistill.errors import ConfigError
from medistill.package.manifest import DataSection, GuaranteeSection
from medistill.privacy.accounting import epsilon_of, noise_multiplier

PUBLIC = [
    "names of classes and what labels mean",
    "size, channels and depth of images, and the window of intensities",
    "name, source and licence of the data set",
    "which images are validation and test images, and that these took no part",
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
    return Mechanism(unit_of(config, prepared.dataset), multiplier, config.count_share, config.clip)


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
    if config.delta * images < 1:
        return []
    return [f"privacy: δ = {config.delta:g} is not below one in {images}, the number of training images"]


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
    shape = prepared_shape(dataset.image.shape, data.size)
    method, _ = configured(None, 1, None, None, {"privacy": config.model_dump()}, {}, shape=shape)
    assert isinstance(method, PooledMatching)
    unit, task = unit_of(config, dataset), dataset.task
    numbers = method.released_numbers(data.channels or dataset.image.channels, shape, task.outputs)
    units = _units(dataset, unit)

    def noise(epsilon: float) -> list[float]:
        mechanism = Mechanism(unit, noise_multiplier(epsilon, config.delta), config.count_share)
        length = mechanism.noise_multiplier * mechanism.sensitivity * math.sqrt(numbers)
        return [length / max(n, 1e-9) for n in units]

    found = noise(config.epsilon)
    enough = [epsilon for epsilon in EPSILONS if max(noise(epsilon)) <= BEARABLE]
    return {
        "epsilon": config.epsilon, "delta": config.delta, "unit": unit,
        "noise_multiplier": noise_multiplier(config.epsilon, config.delta),
        "noise": {name: round(value, 3) for name, value in zip(task.strata, found, strict=True)},
        "bearable": max(found) <= BEARABLE, "least_epsilon": enough[0] if enough else None,
    }  # fmt: skip


def _units(dataset: Dataset, unit: Unit) -> list[float]:
    """What all training images or patients weigh in each stratum, as a release counts them."""
    train = dataset.train
    membership = dataset.task.membership(train.targets).astype(float)
    weights = 1 / np.sqrt(np.maximum(membership.sum(axis=1), 1))
    if unit == "patient" and train.patients is not None:
        numbers = np.unique(train.patients, return_inverse=True)[1]
        weights /= np.bincount(numbers)[numbers]
    return [float(total) for total in (membership * weights[:, None]).sum(axis=0)]


def overwritten_warning(earlier: Json | None, config: DistilConfig, identity: Json) -> list[str]:
    """What is to be told where a private package of the same data is made anew.

    Args:
        earlier: what identifies the run that is replaced, if any.
        config, identity: of this run.
    """
    if earlier is None or config.privacy is None or earlier.get("data") != identity["data"]:
        return []
    try:
        before = build(PrivacyConfig, mapping(mapping(earlier["configuration"], "")["privacy"], ""))
    except (ConfigError, KeyError):  # it was not private, or somebody changed the record
        return []
    sigmas = [noise_multiplier(p.epsilon, p.delta) for p in (before, config.privacy)]
    together = 1 / math.hypot(*(1 / sigma for sigma in sigmas))  # as of one release with less noise
    delta = config.privacy.delta
    return [
        f"privacy: real images are asked again. If the package that is replaced was given away, both together have "
        f"ε = {epsilon_of(together, delta):.3g} at δ = {delta:g}"
    ]


def guarantee_section(config: PrivacyConfig, mechanism: Mechanism, state: State) -> GuaranteeSection:
    """What the manifest says, from the state after the release."""
    return GuaranteeSection(
        epsilon=config.epsilon, delta=config.delta, unit=mechanism.unit, noise_multiplier=mechanism.noise_multiplier,
        sensitivity=mechanism.sensitivity, clip=float(state.buffers["clip"]),
        numbers=int(state.buffers["means"].numel() + state.buffers["counts"].numel()), public=PUBLIC,
    )  # fmt: skip


def data_section(prepared: PreparedDataset, noisy: torch.Tensor | None = None) -> DataSection:
    """The original data as the manifest names them.

    Args:
        prepared: the data; without images, where numbers are given.
        noisy: number of images, or of patients, in each stratum, where the true ones are private.
    """
    description = prepared.dataset.description
    private = noisy is not None
    counts = prepared.real_per_stratum if noisy is None else [round(float(n)) for n in noisy]
    return DataSection(
        name=description.name,
        fingerprint=None if private else prepared.dataset.fingerprint["sha256"],
        training_images=sum(counts) if private else len(prepared.train),
        per_stratum=counts,
        licence=description.licence,
        source=description.source,
        notes=[] if private else list(description.notes),
    )
