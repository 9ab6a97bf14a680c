"""What images are: channels, lengths in space, depth of numbers; and how pixels become what networks see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Flips = Literal["none", "horizontal", "both"]
"""Which mirror images keep their class: none, those along the last axis, or those along every axis."""

Shape = tuple[int, ...]
"""Lengths in space: (height, width), or (depth, height, width)."""

DEPTHS = (8, 16)
"""Bits of a pixel as prepared and stored."""


def pixel_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Of pixels of so many bits.

    >>> pixel_type(16)
    dtype('uint16')
    """
    return np.dtype(f"uint{bits}")


def white_of(kind: npt.DTypeLike) -> int:
    """The greatest value of a type of pixels.

    >>> white_of(np.uint8), white_of(np.uint16)
    (255, 65535)
    """
    return int(np.iinfo(np.dtype(kind)).max)


def in_8_bits(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Pixels to be looked at: of 16 bits the upper 8."""
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


@dataclass(frozen=True)
class ImageSpec:
    """What the images of a data set are once they are prepared, and what they were before.

    Args:
        channels: 1 or 3.
        shape: lengths in space, two or three numbers.
        dtype: of the images as read, for instance "uint8" or "int16".
        window: raw intensities that became 0 and white (255, or 65,535 of 16 bits): ``raw = low + pixel / white *
            (high - low)`` goes back, up to rounding and to what resizing lost.
        spacing: millimetres between neighbouring pixels along each axis of the images as read, where known.
    """

    channels: int
    shape: Shape
    dtype: str = "uint8"
    window: tuple[float, float] = (0.0, 255.0)
    spacing: tuple[float, ...] | None = None

    @property
    def dimensions(self) -> int:
        """2 for pictures, 3 for volumes."""
        return len(self.shape)

    @property
    def pixels(self) -> int:
        """Pixels (or voxels) of an image, in one channel."""
        return int(np.prod(self.shape))

    def stored_shape(self, factor: int) -> Shape:
        """Lengths in space of an image that is stored at 1/factor of each side."""
        return tuple(side // factor for side in self.shape)


def shape_in_words(shape: Sequence[int]) -> str:
    """ "28x28", "28x28x28"."""
    return "x".join(map(str, shape))


def is_picture(shape: Sequence[int]) -> bool:
    """Whether images of these lengths are pictures, not volumes."""
    return len(shape) == 2


@dataclass(frozen=True)
class Normalisation:
    """From stored pixels to what networks see, and back.

    ``x = (pixel / white - mean) / std`` for each channel; white is 255, of 16 bits 65,535.

    Args:
        mean, std: of each channel, of training pixels scaled to [0, 1].
        flips: which mirror images keep their class.
        bits: of a pixel, 8 or 16.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: Flips = "none"
    bits: Literal[8, 16] = 8

    @property
    def white(self) -> int:
        """The greatest value of a pixel."""
        return white_of(pixel_type(self.bits))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (n, c, *spatial), of whatever type, to float32 images."""
        scale = channelwise(tuple(1 / (self.white * s) for s in self.std), pixels)
        shift = channelwise(tuple(-m / s for m, s in zip(self.mean, self.std, strict=True)), pixels)
        return pixels * scale + shift

    def quantise(self, images: Tensor) -> Tensor:
        """Images back to pixels, rounded."""
        import torch

        mean, std = (channelwise(v, images) for v in (self.mean, self.std))
        kind = torch.uint8 if self.bits == 8 else torch.uint16
        return ((images * std + mean) * self.white).round().clamp(0, self.white).to(kind)

    def bounds(self, dimensions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised values of black and of white, (1, c, 1, ...)."""
        import torch

        like = torch.empty((1,) * (dimensions + 2), device=device)
        mean, std = (channelwise(v, like) for v in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std


def channelwise(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A number for each channel, float32, to be multiplied with ``like`` (n, c, *spatial)."""
    import torch

    return torch.tensor(values, device=like.device).view(1, -1, *(1,) * (like.ndim - 2))


def decode(images: Tensor, shape: Shape) -> Tensor:
    """Images (n, c, *spatial) as networks see them, at ``shape``: those stored smaller are enlarged linearly.

    Storing at 1/f of the side lets the bytes of one picture hold f² of them: the multi-formation of Kim et al.,
    "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.
    """
    if images.shape[2:] == shape:
        return images
    from torch.nn import functional

    mode = "bilinear" if is_picture(shape) else "trilinear"
    return functional.interpolate(images, shape, mode=mode, align_corners=False)


def encode(images: Tensor, shape: Shape) -> Tensor:
    """Images (n, c, *spatial) made smaller, to ``shape``, each pixel the mean of what it covers."""
    if images.shape[2:] == shape:
        return images
    from torch.nn import functional

    if is_picture(shape):
        return functional.adaptive_avg_pool2d(images, list(shape))  # type: ignore[arg-type]
    return functional.adaptive_avg_pool3d(images, list(shape))  # type: ignore[arg-type]


def decoded(pixels: Pixels, shape: Shape) -> Pixels:
    """:func:`decode` of pixels, rounded."""
    if pixels.shape[2:] == shape:
        return pixels
    import torch

    return decode(torch.from_numpy(pixels).float(), shape).round().numpy().astype(pixels.dtype)


def encoded(pixels: Pixels, shape: Shape) -> Pixels:
    """:func:`encode` of pixels, rounded."""
    if pixels.shape[2:] == shape:
        return pixels
    import torch

    return encode(torch.from_numpy(pixels).float(), shape).round().numpy().astype(pixels.dtype)
