"""One file, one picture or volume: PNG, JPEG, TIFF, BMP, DICOM or NIfTI."""

from __future__ import annotations

import functools
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.data.dicom import is_dicom, read_dicom
from medistill.data.nifti import is_nifti, read_nifti

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}
KINDS = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI"

MODALITIES = {
    "CR", "CT", "DX", "ES", "GM", "IO", "IVOCT", "MG", "MR", "NM", "OCT", "OP", "OPT", "OT", "PT", "PX", "RF", "SC",
    "SM", "US", "XA", "XC",
}  # fmt: skip
"""Defined terms of DICOM (PS3.3 C.7.3.1.1.1) that are told; another word there might be anything."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SourceImage:
    """What a file shows, and what it says beside that.

    Args:
        pixels: (h, w, c), or (d, h, w, c) of a volume, ``uint8`` or ``uint16``, or ``int16`` in Hounsfield units.
        unit: "HU", or nothing.
        spacing: millimetres between neighbouring pixels along each axis, where known.
        patient, scanner: what tells one from another, where known; for numbering, not to be stored.
        frames: how many the file has; the middle one is the picture.
        shape: pixels along each axis, where ``pixels`` were put elsewhere.
        modality: "CT", "MR", "CR" and so on, of a DICOM file.
        transparent: whether pixels were partly or wholly transparent, which was dropped.
        text: whether it seems to show letters, or its header says so; None where nobody looked.
        often_text: whether images of its kind often show letters.
    """

    pixels: Array
    unit: str = ""
    spacing: tuple[float, ...] | None = None
    patient: str = ""
    scanner: str = ""
    frames: int = 1
    text: bool | None = None
    shape: tuple[int, ...] = ()
    modality: str = ""
    transparent: bool = False
    often_text: bool = False


def is_picture_file(path: Path) -> bool:
    """Whether a file is of a kind that is read, by its name, or by its first bytes where it has another."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES | DICOM_SUFFIXES or is_nifti(path):
        return True
    return is_dicom(path)


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read.

    Args:
        channels: 1 or 3, convert to that many; None: as many as a file has.
        volume: of NIfTI files the whole volume.
        bits: 8 or 16, of DICOM and NIfTI files that are read as they are displayed.
    """

    channels: int | None = None
    volume: bool = False
    bits: int = 8


AS_THEY_ARE = ReadingOptions()


def read_picture(path: Path, how: ReadingOptions = AS_THEY_ARE) -> SourceImage:
    """One picture.

    Raises:
        NoPicture: a DICOM file that holds something else.
        OSError, ValueError, SyntaxError, DataError: not a readable picture.
    """
    if path.suffix.lower() in SUFFIXES:
        return _of_image(path, how.channels)
    if path.stat().st_size == 0:
        raise ValueError("empty")
    if is_nifti(path):
        return _of_nifti(path, how)
    found = read_dicom(path, only_middle=True, bits=how.bits)
    pixels = np.moveaxis(found.frames[0], 0, -1)
    if how.channels == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    elif how.channels == 1 and pixels.shape[2] == 3:
        pixels = read_gray(pixels)
    return SourceImage(
        pixels, found.unit, found.spacing, found.patient, found.scanner, found.count,
        modality=found.modality if found.modality in MODALITIES else "others",
        text=True if found.says_text else None, often_text=found.often_text,
    )  # fmt: skip


def _of_nifti(path: Path, how: ReadingOptions) -> SourceImage:
    pixels, spacing, volumes = read_nifti(path, how.bits)
    whole = pixels if how.volume and len(pixels) > 1 else pixels[len(pixels) // 2]
    colours = np.repeat(whole[..., None], how.channels or 1, axis=-1)
    return SourceImage(
        colours, spacing=spacing[-whole.ndim :], frames=volumes if how.volume else volumes * len(pixels)
    )


def read_gray(colours: Array) -> Array:
    """Colours (h, w, 3) ``uint8`` as gray (h, w, 1), as Pillow does it."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))[..., None]


@functools.cache
def _quiet() -> None:
    """Pillow's own messages and warnings are no lines for users."""
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    logger = logging.getLogger("PIL")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def read_image(path: Path, channels: int | None = None) -> Array:
    """One image as (h, w, c), ``uint8`` or ``uint16``; transparency is dropped, palettes are resolved.

    See :func:`read_picture`, which also tells what was dropped.

    A photograph's orientation tag is obeyed. What cannot be read without loss is refused: several
    pages, floating-point pixels, more than 8 bits per colour.

    Raises:
        OSError, ValueError, SyntaxError: not a readable image (what Pillow raises).
    """
    return _of_image(path, channels).pixels


def _of_image(path: Path, channels: int | None) -> SourceImage:
    from PIL import Image, ImageOps

    _quiet()
    with Image.open(path) as opened:
        pages = getattr(opened, "n_frames", 1)
        if pages > 1 and opened.format != "MPO":  # of a phone's several pictures the first is what was seen
            raise ValueError(f"{pages} pages; save one file for each")
        if _deeper_than_read(path, opened):
            raise ValueError(
                "16 bits per sample in colour or with transparency; save it with 8 bits per sample, or as 16-bit gray"
            )
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            array = np.asarray(image)
            if array.min() < 0 or array.max() > 65535:
                raise ValueError("values outside 0 to 65535")
            array = array.astype(np.uint16)[..., None]
            return SourceImage(np.repeat(array, 3, axis=2) if channels == 3 else array, frames=pages)
        gray = image.mode in ("1", "L", "LA", "La") or (image.mode == "P" and _is_gray(image))
        wanted = {1: "L", 3: "RGB", None: "L" if gray else "RGB"}[channels]
        if image.mode == "F":
            raise ValueError("floating-point pixels")
        array = np.asarray(image.convert(wanted))
        alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
        transparent = alpha is not None and bool((alpha < 255).any())
        return SourceImage(array[..., None] if array.ndim == 2 else array, frames=pages, transparent=transparent)


def _deeper_than_read(path: Path, opened: Any) -> bool:
    """Whether Pillow would cut more than 8 bits per sample to 8, as it does where there are several samples."""
    if opened.format == "PNG":
        with path.open("rb") as stream:
            header = stream.read(26)
        return header[24] == 16 and header[25] != 0  # 0: gray alone
    if opened.format == "TIFF":
        bits = opened.tag_v2.get(258, 1)
        return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return False


def _is_gray(image: Any) -> bool:
    """Whether every colour of a palette is a gray."""
    palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())
