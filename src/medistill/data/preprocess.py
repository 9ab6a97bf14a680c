"""From raw images to what is trained on, with everything recorded that is needed to go back.

Every image becomes ``uint8`` at one size, so what is distilled, packaged and looked at has
the same range. Intensities of deeper images are mapped by a window from the training
images; mean and standard deviation per channel come from the training images alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.config import DataConfig
from medistill.data.arrays import blocks, empty, release
from medistill.data.dataset import Dataset, Split
from medistill.data.resize import resize
from medistill.types import Json, Labels, RawImages

MINIMUM_SIDE = 16
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luma of ITU-R BT.601, as Pillow uses it."""


@dataclass(frozen=True)
class Preprocessing:
    """How raw images became 8-bit pixels, and the statistics to train on them.

    Args:
        size: (height, width) in pixels.
        channels: 1 or 3.
        window: raw intensities that became 0 and 255; ``raw = low + pixel / 255 * (high - low)``
            goes back, up to rounding and to what resizing lost.
        mean: per channel, of training pixels scaled to [0, 1].
        std: per channel, likewise.
        dtype: of the training images before, for instance "uint8" or "uint16".
    """

    size: tuple[int, int]
    channels: int
    window: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"

    def apply(self, images: RawImages) -> npt.NDArray[np.uint8]:
        """Prepare raw images (n, h, w, c) of any size: ``uint8`` (n, channels, height, width).

        Deeper than 8 bits, values outside the window are clipped to it. Where one side has
        8 bits and the other more, each keeps its own full scale.
        """
        window = self.window
        if self.dtype == "uint8" and images.dtype != np.uint8:
            window = intensity_window(images)
        return _to_pixels(images, self.size, self.channels, window)

    def raw(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Back to the units of the source: the inverse of the window."""
        low, high = self.window
        return low + pixels.astype(np.float64) / 255 * (high - low)

    def as_json(self) -> Json:
        return {
            "size": list(self.size),
            "channels": self.channels,
            "window": list(self.window),
            "mean": list(self.mean),
            "std": list(self.std),
            "dtype": self.dtype,
            "resize": "bilinear with anti-aliasing, aspect kept, edge repeated",
            "inverse": "raw = window[0] + pixel / 255 * (window[1] - window[0])",
            "normalise": "x = (pixel / 255 - mean) / std, per channel",
        }

    @classmethod
    def from_json(cls, value: Json) -> Preprocessing:
        low, high = value["window"]
        height, width = value["size"]
        return cls(
            (int(height), int(width)),
            int(value["channels"]),
            (float(low), float(high)),
            tuple(map(float, value["mean"])),
            tuple(map(float, value["std"])),
            str(value["dtype"]),
        )


@dataclass(frozen=True)
class Part:
    """One split, prepared: ``uint8`` pixels (n, c, h, w) and labels (n,).

    ``soft_labels``, where there are any, are class probabilities (n, classes) to train on instead;
    each row is brought to the sum of one, which storing it in half precision may have taken from it.
    """

    pixels: npt.NDArray[np.uint8]
    labels: Labels
    soft_labels: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        # With one channel, transposed and plain memory look alike, but torch picks other kernels for
        # them, whose sums differ in the last bit: equal images must have equal strides.
        plain = np.ascontiguousarray(self.pixels).reshape(-1).reshape(self.pixels.shape)
        object.__setattr__(self, "pixels", plain)
        if self.soft_labels is not None:
            sums = self.soft_labels.sum(axis=1, keepdims=True)
            object.__setattr__(self, "soft_labels", (self.soft_labels / sums).astype(np.float32))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training: parts by split, how they were made, and what they are."""

    parts: dict[str, Part]
    preprocessing: Preprocessing
    dataset: Dataset

    @property
    def train(self) -> Part:
        return self.parts["train"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.description.class_names

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def counts(self) -> list[int]:
        """Training images per class."""
        return self.dataset.counts("train")


def prepare(dataset: Dataset, config: DataConfig | None = None) -> Prepared:
    """Prepare every split by what the training images and the settings say."""
    config = config or DataConfig()
    height, width, channels = dataset.train.images.shape[1:]
    size = config.size
    if size is None:
        # Enlarging is needed only where a side is too short for the network.
        scale = max(1.0, MINIMUM_SIDE / min(height, width))
        size = (max(MINIMUM_SIDE, round(height * scale)), max(MINIMUM_SIDE, round(width * scale)))
    channels = config.channels or channels
    window = intensity_window(dataset.train.images)
    pixels = _to_pixels(dataset.train.images, size, channels, window)
    mean, std = channel_statistics(pixels)
    preprocessing = Preprocessing(size, channels, window, mean, std, str(dataset.train.images.dtype))
    parts = {"train": Part(pixels, dataset.train.labels)}
    for name, split in dataset.splits.items():
        if name != "train":
            parts[name] = prepare_split(split, preprocessing)
    return Prepared(parts, preprocessing, dataset)


def prepare_split(split: Split, preprocessing: Preprocessing) -> Part:
    """Prepare images of another split or another site in the recorded way."""
    return Part(preprocessing.apply(split.images), split.labels)


def intensity_window(images: RawImages) -> tuple[float, float]:
    """Intensities that become 0 and 255: 0–255 for 8 bits, 0–1 for floats within it, else the extremes."""
    if images.dtype == np.uint8:
        return 0.0, 255.0
    low = min(float(block.min()) for _, block in blocks(images))
    high = max(float(block.max()) for _, block in blocks(images))
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def channel_statistics(pixels: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], exact by counting grey levels."""
    means, stds = [], []
    levels = np.arange(256) / 255
    for channel in range(pixels.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for _, block in blocks(pixels):
            counts += np.bincount(block[:, channel].ravel(), minlength=256)
        weights = counts / counts.sum()
        mean = float(weights @ levels)
        means.append(mean)
        # A constant channel must not be divided by zero.
        stds.append(max(float(np.sqrt(weights @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(stds)


def _to_pixels(
    images: RawImages, size: tuple[int, int], channels: int, window: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    # An 8-bit image keeps its own full scale, whatever depth the training images had.
    low, high = (0.0, 255.0) if images.dtype == np.uint8 else window
    out = empty((len(images), channels, *size))
    for start, raw in blocks(images, 8 * out[:1].nbytes):  # numbers of eight bytes on the way
        batch = _to_channels(raw, channels)
        if batch.dtype != np.uint8 or batch.shape[1:3] != size:
            batch = np.rint((resize(batch, size) - low) * (255 / (high - low))).clip(0, 255)
        out[start : start + len(raw)] = batch.transpose(0, 3, 1, 2)
        release(out)
    return out


def _to_channels(images: RawImages, channels: int) -> npt.NDArray[Any]:
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    gray = images.astype(np.float32) @ np.array(GRAY_WEIGHTS, dtype=np.float32)
    if images.dtype.kind in "ui":
        gray = np.rint(gray)
    return np.asarray(gray.astype(images.dtype)[..., None])
