"""From raw images to what is trained on, with everything recorded that is needed to go back.

Every image becomes ``uint8`` (``uint16`` where 16 bits are asked for) at one size, so what is distilled, packaged
and looked at has the same range. Intensities of deeper images are mapped by a window from the training images; mean
and standard deviation per channel come from the training images alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels, RawImages, SoftLabels, Targets
from medistill.config import DataConfig
from medistill.data.arrays import blocks, empty, feed, held, release
from medistill.data.dataset import Dataset, Split
from medistill.data.image import ImageSpec, Normalisation, Shape, pixel_type, shape_in_words, white_of
from medistill.data.intensity import intensity_window
from medistill.data.resize import resize
from medistill.data.step import Step, StepRecord, asked_steps, make_step, stepped
from medistill.data.steps.clip import Clip
from medistill.errors import ConfigError
from medistill.tasks.task import Task

MINIMUM_SIDE = 16
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luma of ITU-R BT.601, as Pillow uses it."""

PUBLIC_STATISTICS = (0.5, 0.25)
"""Mean and standard deviation of pixels in [0, 1] where they must not be those of the images."""

MAXIMUM_SIDE = 4096
"""Pixels; what a package can hold."""


@dataclass(frozen=True)
class Preprocessing:
    """How raw images became pixels of 8 or 16 bits, and how pixels are normalised to train on them.

    Args:
        image: channels, shape, the window of intensities and the depth before.
        normalisation: mean and standard deviation of training pixels, and which mirror images keep their class.
        steps: what was done to raw images before, in order.
    """

    image: ImageSpec
    normalisation: Normalisation
    steps: tuple[StepRecord, ...] = ()

    def apply(self, images: RawImages) -> Pixels:
        """Prepare raw images (n, c, *spatial) of any size: pixels (n, channels, *shape).

        Deeper than 8 bits, values outside the window are clipped to it. Where one side has
        8 bits and the other more, each keeps its own full scale.

        Raises:
            ConfigError: pictures where volumes are needed, or the other way round; a step that is not known here or
                not for such images.
        """
        images = stepped(images, [make_step(record) for record in self.steps]).images
        window = self.image.window
        if self.image.dtype == "uint8" and images.dtype != np.uint8:
            window = intensity_window(images)
        return _to_pixels(images, self.image.shape, self.image.channels, window, self.normalisation.bits)

    def raw(self, pixels: Pixels) -> npt.NDArray[np.float64]:
        """Back to the units that images had after all steps: the inverse of the window."""
        low, high = self.image.window
        return low + pixels.astype(np.float64) / self.normalisation.white * (high - low)


@dataclass(frozen=True)
class TensorSplit:
    """One split, prepared: pixels (n, c, *spatial) and targets (n, outputs).

    ``soft_labels``, where there are any, are probabilities (n, outputs) to train on instead.
    """

    pixels: Pixels
    targets: Targets
    soft_labels: SoftLabels | None = None

    def __post_init__(self) -> None:
        # With one channel, transposed and plain memory look alike, but torch picks other kernels for
        # them, whose sums differ in the last bit: equal images must have equal strides.
        plain = np.ascontiguousarray(self.pixels).reshape(-1).reshape(self.pixels.shape)
        object.__setattr__(self, "pixels", plain)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> Shape:
        """Lengths in space of an image."""
        return tuple(self.pixels.shape[2:])

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.pixels.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels and labels, hexadecimal: what results are known by in the user's own cache."""
        depth = "" if self.pixels.dtype == np.uint8 else str(self.pixels.dtype)
        content = hashlib.sha256(f"{self.pixels.shape}{self.targets.shape}{depth}".encode())
        feed(content, self.pixels)
        content.update(np.ascontiguousarray(self.targets).data)
        if self.soft_labels is not None:
            content.update(np.ascontiguousarray(self.soft_labels).data)
        return content.hexdigest()

    def with_soft_labels(self, soft_labels: SoftLabels | None) -> TensorSplit:
        """The same images with these labels to train on."""
        return replace(self, soft_labels=soft_labels)


@dataclass(frozen=True)
class PreparedDataset:
    """A data set ready for training: tensors by split, how they were made, and what they are."""

    splits: dict[str, TensorSplit]
    preprocessing: Preprocessing
    dataset: Dataset

    @property
    def train(self) -> TensorSplit:
        return self.splits["train"]

    @property
    def task(self) -> Task:
        return self.dataset.task

    @property
    def normalisation(self) -> Normalisation:
        return self.preprocessing.normalisation

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.description.class_names

    @property
    def memory_mb(self) -> float:
        """Megabytes of all images in memory, as read and as prepared.

        Of arrays that lie in files only a block is in memory at a time.
        """
        arrays = [split.images for split in self.dataset.splits.values()]
        arrays += [split.pixels for split in self.splits.values()]
        distinct = {array.ctypes.data: array for array in arrays}
        return sum(map(held, distinct.values())) / 1e6

    def without_images(self) -> PreparedDataset:
        """What is known of the data set without any of its images."""
        return replace(self, splits={}, dataset=Dataset({}, self.dataset.description))

    @cached_property
    def real_per_stratum(self) -> list[int]:
        """Training images in each stratum."""
        return self.dataset.counts("train")


def prepare(dataset: Dataset, config: DataConfig | None = None) -> PreparedDataset:
    """Prepare every split by what the training images and the settings say.

    Raises:
        ConfigError: a size of two numbers for volumes, or of three for pictures; public statistics of images of more
            than 8 bits without a window.
    """
    config = config or DataConfig()
    given = dataset.image
    shape = prepared_shape(given.shape, config.size)
    channels = config.channels or given.channels
    public = config.statistics == "public"
    # Hounsfield units are signed; what is not, of a set that has a window, was made black to white by it in reading.
    shown = dataset.description.window is not None and dataset.train.images.dtype.kind == "u"
    asked = None if shown else config.window or dataset.description.window
    images, taken, notes = _after_steps(dataset.train.images, config, asked)
    if any(not step.keeps_units for step in taken) and images.dtype != np.uint8:
        window: tuple[float, float] = (0.0, 1.0)
    else:
        window = _window(images, asked, public)
    pixels = _to_pixels(images, shape, channels, window, config.bits)
    mean, std = ((n,) * channels for n in PUBLIC_STATISTICS) if public else channel_statistics(pixels)
    preprocessing = Preprocessing(
        replace(given, channels=channels, shape=shape, window=window),
        Normalisation(mean, std, dataset.description.flips, config.bits),
        tuple(step.record for step in taken),
    )
    splits = {"train": TensorSplit(pixels, dataset.train.targets)}
    for name, split in dataset.splits.items():
        if name != "train":
            splits[name] = prepare_split(split, preprocessing)
    if notes:
        described = replace(dataset.description, notes=(*dataset.description.notes, *notes))
        dataset = replace(dataset, description=described)
    return PreparedDataset(splits, preprocessing, dataset)


def _after_steps(
    train: RawImages, config: DataConfig, window: tuple[float, float] | None
) -> tuple[RawImages, list[Step], tuple[str, ...]]:
    """Training images after the steps that are asked for, these with what follows from training images, and notes.

    A window comes before all steps, as it says which intensities matter.
    """
    asked = asked_steps(config.steps)
    if asked and window is not None and train.dtype != np.uint8:
        asked.insert(0, Clip(window=window, of_8_bits=False))
    images, taken, notes = train, list[Step](), list[str]()
    public = config.statistics == "public"
    if public:
        require_public_steps(config)
    for step in asked:
        fitted = step.fitted(images[:0] if public else images)  # there is nothing to see under a guarantee
        after, left = stepped(images, [fitted])
        if not public:  # how many is private
            notes += filter(None, [fitted.told(images)])
            if left:
                notes.append(f"{left} of {len(images)} training images were left as they were by '{step.name}'")
        images, taken = after, [*taken, fitted]
    return images, taken, tuple(notes)


def require_public_steps(config: DataConfig) -> None:
    """Refuse steps that look at all training images, as nothing private may.

    Raises:
        ConfigError: such a step is asked for.
    """
    looking = [step.name for step in asked_steps(config.steps) if step.looks_at_training_images]
    if looking:
        raise ConfigError(
            f"'{looking[0]}' looks at training images", where="data.steps",
            allowed="with a guarantee only steps that do not, or a window for it",
        )  # fmt: skip


def prepared_shape(given: Shape, asked: Shape | None) -> Shape:
    """The shape that images of a shape are brought to: as asked for, else their own, at least 16 a side.

    Raises:
        ConfigError: asked for in another number of dimensions.
    """
    if asked is None:
        if max(given) > MAXIMUM_SIDE:
            raise ConfigError(
                f"images of {shape_in_words(given)} pixels", allowed=f"up to {MAXIMUM_SIDE} a side",
                remedy="give --size 28 to 224",
            )  # fmt: skip
        # Enlarging is needed only where a side is too short for the network. A volume of few slices gets more slices,
        # a picture keeps its proportions.
        scale = max(1.0, MINIMUM_SIDE / min(given)) if len(given) == 2 else 1.0
        return tuple(max(MINIMUM_SIDE, round(side * scale)) for side in given)
    if len(set(asked)) == 1:
        return (asked[0],) * len(given)
    if len(asked) != len(given):
        raise ConfigError(
            f"{shape_in_words(asked)} for images of {shape_in_words(given)}", where="data.size",
            allowed=f"one number, or {len(given)}",
        )  # fmt: skip
    return asked


def prepare_split(split: Split, preprocessing: Preprocessing) -> TensorSplit:
    """Prepare images of another split or another site in the recorded way."""
    return TensorSplit(preprocessing.apply(split.images), split.targets)


def _window(images: RawImages, asked: tuple[float, float] | None, public: bool) -> tuple[float, float]:
    if images.dtype == np.uint8:
        if asked is not None:
            raise ConfigError(
                f"[{asked[0]:g}, {asked[1]:g}] for images of 8 bits", where="data.window",
                allowed="none: these keep their full scale",
            )  # fmt: skip
        return intensity_window(images)
    if asked is None and public:
        raise ConfigError(
            f"is not given, and images of {images.dtype} have no range of their own", where="data.window",
            allowed="intensities that become black and white, which do not depend on the images",
            remedy="for instance --set data.window=[-1000,1000] for CT in Hounsfield units",
        )  # fmt: skip
    return asked or intensity_window(images)


def require_depth(dataset: Dataset, config: DataConfig) -> None:
    """Refuse 16 bits of images that have no more than 8, or in colour, which no PNG writer at hand stores.

    Raises:
        ConfigError: these were asked for.
    """
    if config.bits == 8:
        return
    if dataset.train.images.dtype == np.uint8:
        raise ConfigError(f"{config.bits} for images of 8 bits", where="data.bits", allowed="8")
    if (config.channels or dataset.image.channels) > 1:
        raise ConfigError(
            f"{config.bits} for images in colour", where="data.bits", allowed="8, or gray images (--channels 1)"
        )


def channel_statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], exact by counting grey levels."""
    means, stds, white = [], [], white_of(pixels.dtype)
    levels = np.arange(white + 1) / white
    for channel in range(pixels.shape[1]):
        counts = np.zeros(white + 1, dtype=np.int64)
        for _, block in blocks(pixels, 8 * pixels[:1, 0].size):  # counted as whole numbers of eight bytes
            counts += np.bincount(block[:, channel].ravel(), minlength=white + 1)
        weights = counts / counts.sum()
        mean = float(weights @ levels)
        means.append(mean)
        # A constant channel must not be divided by zero.
        stds.append(max(float(np.sqrt(weights @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(stds)


def _to_pixels(images: RawImages, shape: Shape, channels: int, window: tuple[float, float], bits: int) -> Pixels:
    if images.ndim - 2 != len(shape):
        raise ConfigError(
            f"images of {shape_in_words(images.shape[2:])}", where="data", allowed=f"{len(shape)} dimensions",
            remedy="pictures and volumes cannot be used together",
        )  # fmt: skip
    # An 8-bit image keeps its own full scale, whatever depth the training images had.
    low, high = (0.0, 255.0) if images.dtype == np.uint8 else window
    kind = pixel_type(bits)
    white = white_of(kind)
    out = empty((len(images), channels, *shape), kind)
    for start, raw in blocks(images, 8 * out[:1].nbytes):  # numbers of eight bytes on the way
        batch = _to_channels(raw, channels)
        if batch.dtype != np.uint8 or batch.shape[2:] != shape or bits > 8:
            batch = np.rint((resize(batch, shape) - low) * (white / (high - low))).clip(0, white)
        out[start : start + len(raw)] = batch
        release(out)
    return out


def _to_channels(images: RawImages, channels: int) -> npt.NDArray[Any]:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=1)
    last = np.moveaxis(images, 1, -1).astype(np.float32)
    gray = last @ np.array(GRAY_WEIGHTS, dtype=np.float32)
    if images.dtype.kind in "ui":
        gray = np.rint(gray)
    return np.asarray(gray.astype(images.dtype)[:, None])
