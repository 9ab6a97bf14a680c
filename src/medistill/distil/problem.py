"""What a method is given: the training images by class, and how many to make of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medistill.data.arrays import feed, take
from medistill.data.dataset import Flips
from medistill.data.preprocess import Prepared
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.pixels import Pixels, channelwise, decode, encode, normalise
from medistill.nets.zoo import Network

SMALLEST_SIDE = 8
"""Pixels of a stored image's side; below it there is little left to see."""


CHUNK = 64
"""Real images given to a network at once where nothing of them is kept, few enough for the cache."""


@dataclass(frozen=True)
class Problem:
    """Training images sorted by class, as ``uint8``; normalised only when drawn.

    Args:
        pixels: (n, c, h, w) ``uint8``, sorted by class; may lie in a file.
        sizes: training images per class.
        counts: images to make per class, at most the class's size.
        stored: (height, width) in which images are learned and sent, at most the networks' own.
        mean, std: per channel, of pixels in [0, 1].
        flips: which mirror images keep their class.
        device: where images are given and learned; what is random is drawn on the CPU, alike for every device.
        images_at_once: how many go through a network together at most; None: as many as a method likes. It changes
            what memory is needed, and results by rounding alone.
    """

    pixels: npt.NDArray[np.uint8]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    stored: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: Flips
    device: torch.device = field(default=torch.device("cpu"))
    images_at_once: int | None = None

    @property
    def classes(self) -> int:
        return len(self.sizes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def labels(self) -> Tensor:
        """Class numbers of the images to make, sorted, (sum of counts,)."""
        return torch.repeat_interleave(torch.arange(self.classes), torch.tensor(self.counts)).to(self.device)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *np.cumsum(self.sizes).tolist())

    @cached_property
    def _made_starts(self) -> tuple[int, ...]:
        return (0, *np.cumsum(self.counts).tolist())

    def made(self, label: int) -> slice:
        """Rows of the images made for a class."""
        return slice(self._made_starts[label], self._made_starts[label + 1])

    def normalise(self, pixels: Tensor) -> Tensor:
        """``uint8`` pixels to what networks see: ``(pixel / 255 - mean) / std``, float32."""
        return normalise(pixels, self.mean, self.std)

    def quantise(self, images: Tensor) -> Tensor:
        """Back from normalised images to ``uint8`` pixels, rounded."""
        mean, std = (channelwise(v, images.device) for v in (self.mean, self.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def encode(self, images: Tensor) -> Tensor:
        """From images as networks see them to images as they are stored."""
        return encode(images, self.stored)

    def decode(self, images: Tensor) -> Tensor:
        """From images as they are stored to images as networks see them."""
        return decode(images, self.shape[1:])

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Normalised values of black and of white, (1, c, 1, 1)."""
        mean, std = (channelwise(v, self.device) for v in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the training images, hexadecimal."""
        content = hashlib.sha256()
        feed(content, self.pixels)
        return content.hexdigest()

    @cached_property
    def _training(self) -> Pixels:
        return Pixels(self.pixels, self.device)

    def images(self, rows: Tensor | slice) -> Tensor:
        """Normalised training images by their rows among all, which are sorted by class."""
        return self.normalise(self._training[rows])

    def of_class(self, label: int, rows: Tensor | None = None) -> Tensor:
        """Normalised training images of a class: all, or the rows named within the class."""
        start, end = self._starts[label : label + 2]
        return self.images(slice(start, end) if rows is None else rows + start)

    def at_once(self, images: int) -> int:
        """So many images, or as many as may go through a network together if those are fewer."""
        return images if self.images_at_once is None else min(images, self.images_at_once)

    def parameters(self, network: Network, key: Key) -> Parameters:
        """New parameters of a network, where the images are."""
        return {name: tensor.to(self.device) for name, tensor in network.parameters(key).items()}

    def draw(self, label: int, count: int, key: Key) -> Tensor:
        """Rows within a class, drawn without replacement, at most as many as there are."""
        order = torch.randperm(self.sizes[label], generator=key.generator())
        return order[:count]

    def noise(self, key: Key) -> Tensor:
        """Gaussian noise for each image to be made, within black and white, sorted by class."""
        shape = (len(self.labels), *self.shape)
        return torch.randn(shape, generator=key.generator()).to(self.device).clamp(*self.bounds)

    def random_images(self, key: Key) -> Tensor:
        """A random real image for each to be made, normalised, sorted by class."""
        drawn = [
            self.of_class(label, self.draw(label, count, key.child("class", label)))
            for label, count in enumerate(self.counts)
        ]
        return torch.cat(drawn)


def make_problem(
    prepared: Prepared,
    ipc: int | None,
    ratio: float | None,
    factor: int = 1,
    device: torch.device | None = None,
) -> Problem:
    """Decide how many images each class gets and sort the training images by class.

    ``ratio`` means that share of the training images, the same number for every class, at
    least one. A class with fewer images than asked for gives as many as it has.
    With a ``factor`` f above 1 the bytes of each are spent on f² images of 1/f of the side.

    Raises:
        ConfigError: neither or both of ``ipc`` and ``ratio``, or more than any class holds; a side
            divided by ``factor`` is under 8 pixels.
    """
    sizes = prepared.counts
    stored, counts = stored_images(prepared, ipc, ratio, factor)
    order = np.argsort(prepared.train.labels, kind="stable")
    statistics = prepared.preprocessing
    return Problem(
        take(prepared.train.pixels, order),
        tuple(sizes),
        counts,
        stored,
        statistics.mean,
        statistics.std,
        prepared.dataset.description.flips,
        device or torch.device("cpu"),
    )


def stored_images(
    prepared: Prepared, ipc: int | None, ratio: float | None, factor: int
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Height and width of the images that are stored, and how many of each class.

    Raises:
        ConfigError: see :func:`make_problem`.
    """
    sizes = prepared.counts
    asked = images_per_class(sizes, ipc, ratio)
    height, width = prepared.train.pixels.shape[2:]
    stored = (height // factor, width // factor)
    if min(stored) < SMALLEST_SIDE:
        raise ConfigError(
            f"{factor}, which leaves {stored[0]}x{stored[1]} of {height}x{width} pixels",
            where="--factor",
            allowed=f"1 to {min(height, width) // SMALLEST_SIDE} for this size",
        )
    return stored, tuple(min(asked * factor**2, n) for n in sizes)


def images_per_class(sizes: list[int], ipc: int | None, ratio: float | None) -> int:
    """Images per class asked for, from ``ipc`` or ``ratio``.

    Raises:
        ConfigError: see :func:`make_problem`.
    """
    if (ipc is None) == (ratio is None):
        both = "" if ipc is None else ", not both"
        raise ConfigError(f"give one of --ipc and --ratio{both}", allowed="--ipc 10, or --ratio 0.01")
    if ratio is not None:
        if not 0 < ratio < 1:
            raise ConfigError(f"{ratio}", where="--ratio", allowed="above 0, below 1")
        ipc = max(1, int(ratio * sum(sizes) / len(sizes)))
    assert ipc is not None
    if not 1 <= ipc <= max(sizes):
        raise ConfigError(
            f"{ipc}", where="--ipc", allowed=f"1 to {max(sizes)}, the training images of the largest class"
        )
    return ipc
