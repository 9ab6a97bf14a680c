"""What a method is given: real images behind queries, and how many synthetic images to make of each stratum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medistill.aliases import Targets
from medistill.data.image import Normalisation, Shape, decode, encode, shape_in_words
from medistill.data.preprocess import PreparedDataset
from medistill.distil.private_images import Mechanism, PrivateRealImages, patient_numbers
from medistill.distil.real_images import Query, RealImages
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.zoo import Network
from medistill.parallel import PIECE, Workers, parts
from medistill.tasks.task import Task

SMALLEST_SIDE = 8
"""Pixels of a stored image's side; below it there is little left to see."""


MOST_PRIVATE = 1000
"""Images per stratum at most where the number of real ones is private."""


@dataclass(frozen=True)
class DistillationProblem:
    """Real images, and the synthetic ones to make, sorted by stratum.

    Args:
        real: the training images, behind queries.
        synthetic_per_stratum: images to make, at most as many as the stratum has.
        stored_shape: in which images are learned and sent, at most the networks' own.
        device: where images are given and learned; what is random is drawn on the CPU, alike for every device.
        micro_batch_size: how many go through a network together at most; None: as many as a method likes. It changes
            what memory is needed, and results by rounding alone.
        workers: threads that do pieces of the work side by side; how many changes no byte.
    """

    real: RealImages
    synthetic_per_stratum: tuple[int, ...]
    stored_shape: Shape
    device: torch.device = field(default=torch.device("cpu"))
    micro_batch_size: int | None = None
    workers: Workers = field(default=Workers())

    @property
    def task(self) -> Task:
        """What targets mean."""
        return self.real.task

    @property
    def normalisation(self) -> Normalisation:
        """How networks see images."""
        return self.real.normalisation

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for an image."""
        return self.task.outputs

    @property
    def strata(self) -> int:
        """How many strata there are."""
        return len(self.synthetic_per_stratum)

    @property
    def real_per_stratum(self) -> tuple[int, ...]:
        """Training images in each stratum."""
        return self.real.per_stratum

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.real.channels

    @property
    def shape(self) -> Shape:
        """Lengths in space of an image as networks see it."""
        return self.real.shape

    @cached_property
    def stratum_of(self) -> Tensor:
        """The stratum of each image to make, (n,), sorted."""
        counts = torch.tensor(self.synthetic_per_stratum)
        return torch.repeat_interleave(torch.arange(self.strata), counts).to(self.device)

    @cached_property
    def targets(self) -> Tensor:
        """What the images to make stand for, (n, outputs) ``uint8``."""
        representatives: Targets = self.task.representatives()
        return torch.from_numpy(representatives).to(self.device)[self.stratum_of]

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *np.cumsum(self.synthetic_per_stratum).tolist())

    def synthetic(self, stratum: int) -> slice:
        """Rows of the images made for a stratum."""
        return slice(self._starts[stratum], self._starts[stratum + 1])

    def rows(self, strata: Sequence[int]) -> Tensor:
        """Rows of the images made for several strata, stratum by stratum."""
        return torch.cat([torch.arange(self._starts[s], self._starts[s + 1]) for s in strata])

    def present(self, strata: range) -> list[int]:
        """Those of the strata that images are made for."""
        return [stratum for stratum in strata if self.synthetic_per_stratum[stratum]]

    def quantise(self, images: Tensor) -> Tensor:
        """Back from normalised images to ``uint8`` pixels, rounded."""
        return self.normalisation.quantise(images)

    def encode(self, images: Tensor) -> Tensor:
        """From images as networks see them to images as they are stored."""
        return encode(images, self.stored_shape)

    def decode(self, images: Tensor) -> Tensor:
        """From images as they are stored to images as networks see them."""
        return decode(images, self.shape)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Normalised values of black and of white, (1, c, 1, ...)."""
        return self.normalisation.bounds(len(self.shape), self.device)

    def at_once(self, images: int) -> int:
        """So many images, or as many as may go through a network together if those are fewer."""
        return images if self.micro_batch_size is None else min(images, self.micro_batch_size)

    def parts(self, images: int) -> list[slice]:
        """So many images in pieces of work; a GPU likes them together."""
        return parts(images, self.at_once(PIECE if self.device.type == "cpu" else images))

    def worked_by(self, workers: Workers) -> DistillationProblem:
        """The same problem, by so many workers."""
        return replace(self, real=self.real.worked_by(workers), workers=workers)

    def queried_by(self, queries: Sequence[Query]) -> DistillationProblem:
        """The same problem for a method that declares these queries."""
        return replace(self, real=self.real.queried_by(queries))

    def in_micro_batches(self, size: int) -> DistillationProblem:
        """The same problem, of which no more images go through a network together."""
        return replace(self, real=self.real.in_micro_batches(size), micro_batch_size=size)

    def parameters(self, network: Network, key: Key) -> Parameters:
        """New parameters of a network, where the images are."""
        return {name: tensor.to(self.device) for name, tensor in network.parameters(key).items()}

    def noise(self, key: Key) -> Tensor:
        """Gaussian noise for each image to be made, within black and white, sorted by stratum."""
        shape = (len(self.stratum_of), self.channels, *self.shape)
        return torch.randn(shape, generator=key.generator()).to(self.device).clamp(*self.bounds)


def make_problem(
    prepared: PreparedDataset,
    ipc: int | None,
    ratio: float | None,
    factor: int = 1,
    device: torch.device | None = None,
    mechanism: Mechanism | None = None,
) -> DistillationProblem:
    """Decide how many images each stratum gets.

    ``ratio`` means that share of the training images, the same number for every stratum, at
    least one. A stratum with fewer images than asked for gives as many as it has.
    With a ``mechanism`` the real images answer once, with noise, and the number of images does not depend on how many
    there are of a stratum.
    With a ``factor`` f above 1 the bytes of each are spent on f² pictures (f³ volumes) of 1/f of the side.

    Raises:
        ConfigError: neither or both of ``ipc`` and ``ratio``, or more than any stratum holds; a side
            divided by ``factor`` is under 8 pixels.
    """
    stored, counts = stored_images(prepared, ipc, ratio, factor, mechanism is not None)
    where = device or torch.device("cpu")
    patients = prepared.dataset.train.patients
    real = RealImages(prepared.train, prepared.task, prepared.normalisation, where, patients)
    if mechanism is not None:
        real = PrivateRealImages(real, patient_numbers(patients), mechanism)
    return DistillationProblem(real, counts, stored, where)


def stored_images(
    prepared: PreparedDataset, ipc: int | None, ratio: float | None, factor: int, private: bool = False
) -> tuple[Shape, tuple[int, ...]]:
    """Shape of the images that are stored, and how many of each stratum; of private ones as many as are asked for.

    Raises:
        ConfigError: see :func:`make_problem`.
    """
    sizes = prepared.real_per_stratum
    if private:
        if ipc is None or not 1 <= ipc <= MOST_PRIVATE:
            raise ConfigError(
                f"{ratio if ipc is None else ipc}", where="--ratio" if ipc is None else "--ipc",
                allowed=f"--ipc 1 to {MOST_PRIVATE} under --epsilon, where the number of training images is private",
            )  # fmt: skip
        sizes = [MOST_PRIVATE * factor**prepared.preprocessing.image.dimensions] * len(sizes)
    asked = images_per_stratum(sizes, ipc, ratio, prepared.task.noun, len(prepared.train))
    image = prepared.preprocessing.image
    stored = image.stored_shape(factor)
    if min(stored) < SMALLEST_SIDE:
        raise ConfigError(
            f"{factor}, which leaves {shape_in_words(stored)} of {shape_in_words(image.shape)} pixels",
            where="--factor",
            allowed=f"1 to {min(image.shape) // SMALLEST_SIDE} for this size",
        )
    return stored, tuple(min(asked * factor**image.dimensions, n) for n in sizes)


def images_per_stratum(
    sizes: list[int], ipc: int | None, ratio: float | None, noun: str = "class", images: int | None = None
) -> int:
    """Images per class, grade or finding asked for, from ``ipc`` or ``ratio``.

    Args:
        sizes: training images of each stratum.
        ipc: images of each.
        ratio: of training images.
        noun: what a stratum is called.
        images: training images, where strata overlap and their sizes do not add up to it.

    Raises:
        ConfigError: see :func:`make_problem`.
    """
    if (ipc is None) == (ratio is None):
        both = "" if ipc is None else ", not both"
        raise ConfigError(f"give one of --ipc and --ratio{both}", allowed="--ipc 10, or --ratio 0.01")
    if ratio is not None:
        if not 0 < ratio < 1:
            raise ConfigError(f"{ratio}", where="--ratio", allowed="above 0, below 1")
        present = sum(size > 0 for size in sizes)
        ipc = max(1, int(ratio * (images or sum(sizes)) / present))
    assert ipc is not None
    if not 1 <= ipc <= max(sizes):
        raise ConfigError(
            f"{ipc}", where="--ipc", allowed=f"1 to {max(sizes)}, the training images of the largest {noun}"
        )
    return ipc
