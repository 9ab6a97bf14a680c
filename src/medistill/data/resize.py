"""Resizing with anti-aliasing, the aspect kept, the border filled by its own edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import RawImages
from medistill.data.arrays import blocks, release
from medistill.data.image import Shape, shape_in_words
from medistill.data.intensity import within_bounds
from medistill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def fitted(old: Shape, new: Shape) -> Shape:
    """The largest shape of the same aspect that fits into ``new``, at least 1 along each axis."""
    scale = min(b / a for a, b in zip(old, new, strict=True))
    return tuple(min(b, max(1, round(a * scale))) for a, b in zip(old, new, strict=True))


def resize(images: RawImages, shape: Shape, chunk: int = 4096) -> npt.NDArray[np.float32]:
    """Bring images to ``shape`` without distorting them.

    The image is scaled, with anti-aliasing when it shrinks, until it fits; what is left of
    the canvas repeats its edge. Images already of that shape come back unchanged.

    Args:
        images: (n, c, *spatial), any real dtype.
        shape: target lengths in space, as many as the images have.
        chunk: images per step, which bounds the memory used.

    Returns:
        (n, c, *shape) float32 in the values' own units.
    """
    old = tuple(images.shape[2:])
    if old == tuple(shape):
        return np.ascontiguousarray(images, dtype=np.float32)
    import torch
    from torch.nn.functional import pad

    new = fitted(old, shape)
    border: list[int] = []
    for inner, outer in zip(reversed(new), reversed(shape), strict=True):  # the last axis comes first
        before = (outer - inner) // 2
        border += [before, outer - inner - before]
    out = np.empty((*images.shape[:2], *shape), dtype=np.float32)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        batch = torch.from_numpy(np.array(images[rows], dtype=np.float32))
        out[rows] = pad(_scaled(batch, new), border, mode="replicate").numpy()
    return out


def brought_to(
    image: npt.NDArray[np.integer[Any]],
    size: Shape | None,
    spacing: tuple[float, ...] | None = None,
    wanted: float | None = None,
) -> npt.NDArray[np.integer[Any]]:
    """One image at a size, in its own depth: scaled until it fits, or at a spacing that is asked for.

    Args:
        image: (c, *spatial), whole numbers.
        size: lengths in space, a single one for all axes; None keeps the image's.
        spacing: millimetres between its pixels along each axis.
        wanted: millimetres that there shall be. Then the image is resampled to them, and cut or continued by its
            edge on all sides alike to the size.

    Raises:
        ConfigError: a size of two numbers for volumes, or of three for pictures.
    """
    own: Shape = image.shape[1:]
    if size is not None and len(size) != len(own) and len(set(size)) == 1:
        size = (size[0],) * len(own)
    if size is not None and len(size) != len(own):
        raise ConfigError(
            f"{shape_in_words(size)} for images of {shape_in_words(own)}", where="data.size",
            allowed=f"one number, or {len(own)}",
        )  # fmt: skip
    if wanted is not None and spacing is not None and size is not None:
        return _at_spacing(image, size, tuple(step / wanted for step in spacing))
    if size is None or own == size:
        return image
    return _whole(resize(image[None], size)[0], image.dtype)


def _at_spacing(
    image: npt.NDArray[np.integer[Any]], size: Shape, scale: tuple[float, ...]
) -> npt.NDArray[np.integer[Any]]:
    import torch

    own = image.shape[1:]
    new = tuple(max(1, round(side * times)) for side, times in zip(own, scale, strict=True))
    scaled = image
    if new != own:
        batch = torch.from_numpy(np.array(image[None], dtype=np.float32))
        scaled = _whole(_scaled(batch, new)[0].numpy(), image.dtype)
    start = [(there - asked) // 2 for there, asked in zip(new, size, strict=True)]
    cut = tuple(slice(max(0, a), max(0, a) + asked) for a, asked in zip(start, size, strict=True))
    border = [
        (max(0, -a), max(0, asked - there - max(0, -a))) for a, asked, there in zip(start, size, new, strict=True)
    ]
    return np.pad(scaled[(slice(None), *cut)], [(0, 0), *border], mode="edge")


def _whole(values: npt.NDArray[np.float32], kind: np.dtype[Any]) -> npt.NDArray[np.integer[Any]]:
    depth = np.iinfo(kind)
    return np.asarray(np.rint(values).clip(depth.min, depth.max).astype(kind))


def middle_slices(images: RawImages) -> RawImages:
    """Pictures (n, c, h, w) as they are, of volumes (n, c, d, h, w) the middle slice along the first axis; a view."""
    return images if images.ndim == 4 else images[:, :, images.shape[2] // 2]


def small_pictures(images: RawImages, rows: npt.NDArray[np.intp], side: int) -> npt.NDArray[np.float32]:
    """Some images in small, of volumes the middle slice; made a few at a time, so that large ones take little memory.

    Args:
        images: (n, c, *spatial), any real dtype; what is not finite counts as in
            :func:`medistill.data.intensity.within_bounds`.
        rows: which of them, in the order wanted.
        side: pixels of a side.

    Returns:
        (len(rows), c, side, side) float32 in the values' own units.
    """
    pictures = middle_slices(images)
    small = np.empty((len(rows), pictures.shape[1], side, side), dtype=np.float32)
    for start, part in blocks(small, 8 * int(np.prod(pictures.shape[1:]))):
        block = pictures[rows[start : start + len(part)]]
        part[...] = resize(within_bounds(block) if block.dtype.kind == "f" else block, (side, side))
        release(images)
    return small


def _scaled(batch: Tensor, new: Shape) -> Tensor:
    """Images (n, c, *spatial) of another shape, linearly and with anti-aliasing, which torch has for pictures
    only.
    """
    from torch.nn.functional import interpolate

    if len(new) == 2:
        return interpolate(batch, new, mode="bilinear", antialias=True, align_corners=False)
    n, c, depth, *_ = batch.shape
    flat = interpolate(batch.flatten(0, 1), new[1:], mode="bilinear", antialias=True, align_corners=False)
    along = flat.unflatten(0, (n, c)).movedim(2, 3)  # (n, c, height, depth, width)
    upright = along.reshape(n * c * new[1], 1, depth, new[2])
    scaled = interpolate(upright, (new[0], new[2]), mode="bilinear", antialias=True, align_corners=False)
    return scaled.view(n, c, new[1], new[0], new[2]).movedim(2, 3)
