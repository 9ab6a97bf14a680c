"""Resizing with anti-aliasing, the aspect kept, the border filled by its own edge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medistill.types import RawImages


def fitted(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of the same aspect that fit into ``size``, at least 1."""
    scale = min(size[0] / height, size[1] / width)
    return min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))


def resize(images: RawImages, size: tuple[int, int], chunk: int = 4096) -> npt.NDArray[np.float32]:
    """Bring images to ``size`` without distorting them.

    The image is scaled, with anti-aliasing when it shrinks, until it fits; what is left of
    the canvas repeats its edge. Images already of that size come back unchanged.

    Args:
        images: (n, h, w, c), any real dtype.
        size: target (height, width) in pixels.
        chunk: images per step, which bounds the memory used.

    Returns:
        (n, height, width, c) float32 in the values' own units.
    """
    height, width = images.shape[1:3]
    if (height, width) == size:
        return np.ascontiguousarray(images, dtype=np.float32)
    import torch
    from torch.nn.functional import interpolate, pad

    new = fitted(height, width, size)
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    border = (left, size[1] - new[1] - left, top, size[0] - new[0] - top)
    out = np.empty((len(images), *size, images.shape[3]), dtype=np.float32)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        batch = torch.from_numpy(np.asarray(images[rows], dtype=np.float32)).permute(0, 3, 1, 2)
        batch = interpolate(batch, new, mode="bilinear", antialias=True, align_corners=False)
        out[rows] = pad(batch, border, mode="replicate").permute(0, 2, 3, 1).numpy()
    return out
