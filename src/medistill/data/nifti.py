"""NIfTI files: a volume in one orientation, or the slice in its middle.

Axes are brought to the order in which DICOM shows axial slices: from feet to head, from front to back, from the
patient's right to the left. Intensities have no unit that a header could be trusted for, so each volume is shown from
its 0.5th to its 99.5th percentile, in 8 bits; what is stored in 8 bits without a scale is taken as it is, as pictures
are.
"""

from __future__ import annotations

import functools
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from medistill.aliases import Pixels
from medistill.data.image import pixel_type, white_of
from medistill.data.intensity import between_percentiles
from medistill.errors import DataError

SUFFIXES = (".nii", ".nii.gz")

MOST_VOXELS = 2**28
"""Of one file; more is refused before it is read."""


def is_nifti(path: Path) -> bool:
    """Whether a file is called like one."""
    return path.name.lower().endswith(SUFFIXES)


@functools.cache
def _quiet() -> None:
    """nibabel prints what it mends in a header; what matters is told by our own messages."""
    import nibabel

    logger = logging.getLogger(nibabel.imageglobals.logger.name)
    logger.handlers, logger.propagate = [logging.NullHandler()], False


def read_nifti(path: Path, bits: int = 8) -> tuple[Pixels, tuple[float, float, float], int]:
    """The first volume of a file.

    Args:
        path: the file.
        bits: of a voxel as it is displayed, 8 or 16; those that have 8 keep them.

    Returns:
        (depth, height, width) of that depth, millimetres between voxels along each of these axes, and how many
        volumes the file has.

    Raises:
        DataError: it cannot be read; the line does not say where.
    """
    import nibabel

    _quiet()
    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(side) for side in image.shape)
        if not len([side for side in shape if side > 1]) >= 2 or len(shape) < 2 or math.prod(shape[:3]) > MOST_VOXELS:
            raise DataError(f"has the shape {shape}", allowed=f"pictures and volumes of up to {MOST_VOXELS:,} voxels")
        volumes = math.prod(shape[3:])
        first = image.slicer[(slice(None),) * 3 + (slice(0, 1),) * (len(shape) - 3)] if len(shape) > 3 else image
        turned = nibabel.as_closest_canonical(first)
        as_it_is = image.get_data_dtype() == np.uint8 and image.dataobj.slope == 1 and image.dataobj.inter == 0
        if np.iscomplexobj(turned.dataobj[:1, :1, :1]):
            raise DataError("holds complex numbers", remedy="save their magnitude")
        values = np.asarray(turned.dataobj, dtype=np.float32).reshape(turned.shape[:3] + (1,) * (3 - len(shape)))
        zooms = tuple(float(z) for z in (*turned.header.get_zooms()[:3], 1.0, 1.0)[:3])
    except (DataError, MemoryError):
        raise
    except Exception as problem:  # a damaged file raises whatever the damage leads to
        reason = " ".join(str(problem).split())[:160].replace(str(path), "it")
        raise DataError(f"cannot be read ({reason or type(problem).__name__})") from problem
    finite = np.isfinite(values)
    if not finite.any():
        raise DataError("holds no finite number")
    values = np.where(finite, values, values[finite].min())
    # (right, anterior, superior) to (superior, posterior, left).
    shown = values.transpose(2, 1, 0)[:, ::-1, ::-1]
    millimetres = [zooms[2], zooms[1], zooms[0]]
    thin = [axis for axis in range(3) if shown.shape[axis] == 1]
    if len(thin) == 1 and thin != [0]:  # a single slice that is not axial: what is seen is its plane, from above down
        shown, millimetres = np.moveaxis(shown, thin[0], 0)[:, ::-1], [millimetres.pop(thin[0]), *millimetres]
    if as_it_is:
        pixels: Pixels = shown.astype(np.uint8)
    else:
        kind = pixel_type(bits)
        pixels = np.rint(white_of(kind) * between_percentiles(shown, shown)).astype(kind)
    return np.ascontiguousarray(pixels), (millimetres[0], millimetres[1], millimetres[2]), volumes
