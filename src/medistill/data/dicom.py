"""DICOM files: what a file shows, as numbers that mean the same in every file of a set.

Computed tomography is read in Hounsfield units, whatever the file stores; pictures of other kinds as their headers
say that they are to be displayed (modality transform, padding, window or table of values of interest, then the
inversion of MONOCHROME1: DICOM PS3.3 C.11, PS3.4 N.2). No value of a header leaves this module but modality, spacing,
and what tells patients, studies and scanners apart, which the caller replaces by numbers.
"""

from __future__ import annotations

import functools
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medistill.data.dicom_header import (
    group_of,
    number_of,
    of_interest,
    often_shows_text,
    plain_gray,
    says_text,
    text_of,
    value_of,
)
from medistill.data.image import pixel_type, white_of
from medistill.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

Array = npt.NDArray[Any]

DECODERS: dict[str, tuple[str, ...]] = {
    "1.2.840.10008.1.2.4.50": ("pillow", "pylibjpeg"),  # JPEG baseline, 8 bits
    "1.2.840.10008.1.2.4.51": ("pylibjpeg",),  # JPEG extended, 12 bits, which Pillow does not read
    "1.2.840.10008.1.2.4.57": ("pylibjpeg",),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls",),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": ("pyjpegls",),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg",),  # JPEG 2000
    "1.2.840.10008.1.2.4.91": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
    "1.2.840.10008.1.2.5": ("pydicom",),  # RLE
}
"""Decoders by transfer syntax, in the order in which they are tried: always the same, so that pixels are."""

NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
}
"""Objects with pixels that are no pictures of a patient."""

WITHOUT_PREAMBLE = (
    b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00", b"\x00\x08\x00\x05",
)  # fmt: skip
"""First tags of files that begin at once."""

MOST_PIXELS = 2**28
"""Of one file; more is refused before anything is decoded."""

SCANNER = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")
"""What tells scanners apart."""

IDENTIFIERS = {
    "SOP instance": "SOPInstanceUID", "series": "SeriesInstanceUID", "study": "StudyInstanceUID",
    "accession number": "AccessionNumber", "patient": "PatientID",
}  # fmt: skip
"""What a table may call a file by."""

TOMOGRAPHY = {
    "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2",
}  # fmt: skip
"""Computed tomography, enhanced, and converted to that."""

HOUNSFIELD = "HU"
LEAST_HOUNSFIELD = -1024


@dataclass(frozen=True)
class DicomPicture:
    """What one file shows.

    Args:
        frames: (n, c, h, w); Hounsfield units in ``int16``, or ``uint8`` or ``uint16`` as displayed.
        modality: "CT", "MR", "DX", ...
        spacing: millimetres between rows and between columns, where the file says so.
        patient, scanner: what tells one from another, empty where the file does not say; not to be stored.
        count: of frames in the file.
        says_text: the header says that pixels tell who the patient is.
        often_text: images of its kind often show letters.
    """

    frames: Array
    modality: str
    spacing: tuple[float, float] | None
    patient: str
    scanner: str
    count: int = 1
    says_text: bool = False
    often_text: bool = False

    @property
    def unit(self) -> str:
        """ "HU", or "" for pictures as displayed."""
        return HOUNSFIELD if self.frames.dtype == np.int16 else ""


class NoPicture(Exception):
    """A file that is DICOM, and holds no picture to learn from; the message says what it is."""


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, or begins like one without a preamble."""
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return False
    return head[128:132] == b"DICM" or head[:4] in WITHOUT_PREAMBLE


def read_dicom(path: Path, only_middle: bool = False, bits: int = 8) -> DicomPicture:
    """Read a file.

    Args:
        path: the file.
        only_middle: decode of several frames that in the middle alone.
        bits: 8 or 16, of gray pictures as displayed.

    Raises:
        NoPicture: it is a report, a segmentation, a dose, ...
        DataError: it cannot be read; the line says why, and not where: the caller knows the file.
    """
    import pydicom

    _quiet()
    try:
        header = pydicom.dcmread(path, force=True)
        return _picture(header, only_middle, bits)
    except (NoPicture, DataError, MemoryError, NameError):
        raise
    except Exception as problem:  # a damaged file raises whatever the place of the damage leads to
        raise DataError(f"cannot be read ({_one_line(problem)})") from problem


@functools.cache
def _quiet() -> None:
    """pydicom's warnings and messages may quote a header; what matters is told by our own."""
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    for name in ("pydicom", "pylibjpeg"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _one_line(problem: Exception) -> str:
    """What went wrong, without what is quoted: it may be out of the header."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|b'.*", "...", " ".join(str(problem).split())) or type(problem).__name__
    return "".join(c for c in text if c.isprintable())[:160]


def _picture(header: Header, only_middle: bool, bits: int) -> DicomPicture:
    kind = str(value_of(header, "SOPClassUID", ""))
    if kind in NO_PICTURES:
        raise NoPicture(NO_PICTURES[kind])
    if "LOCALIZER" in [str(word).upper() for word in value_of(header, "ImageType") or ()]:
        raise NoPicture("a localizer")
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if "SOPClassUID" not in header and "DirectoryRecordSequence" not in header:
            cut = "TransferSyntaxUID" in (getattr(header, "file_meta", None) or ())
            raise DataError(
                "is cut short: it says how it is coded, and no more" if cut else "is no DICOM file, or damaged"
            )
        if value_of(header, "Rows"):
            raise DataError("is cut short: it has rows and columns, but no pixels")
        raise NoPicture(f"no pixels ({_kind_in_words(header)})")
    _require_size(header)
    _complete_meta(header)
    modality = str(value_of(header, "Modality", "") or "").strip().upper()
    count = int(value_of(header, "NumberOfFrames", 1) or 1)
    first = count // 2 if only_middle else 0
    stored, rgb = _decoded(header, first if only_middle else None)
    if rgb or ("RedPaletteColorLookupTableDescriptor" in header and _is_palette(header)):
        frames = _colour(header, stored, rgb)
    else:
        gray = [_gray(header, frame, number, modality, bits) for number, frame in enumerate(stored, first)]
        frames = np.stack(gray)[:, None]
    scanner = " ".join(filter(None, (text_of(header, name) for name in SCANNER)))
    lettered = {"says_text": says_text(header), "often_text": often_shows_text(header, modality)}
    return DicomPicture(frames, modality, _spacing(header), text_of(header, "PatientID"), scanner, count, **lettered)


def identifiers(path: Path) -> dict[str, str]:
    """What a table may call a file by: its SOP instance, series, study, accession number, patient; nothing where it
    is no DICOM file.
    """
    import pydicom

    _quiet()
    if not is_dicom(path):
        return {}
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(IDENTIFIERS.values()))
        return {kind: text_of(header, name) for kind, name in IDENTIFIERS.items()}
    except Exception:  # told when the file is read
        return {}


def require_attribute(name: str) -> None:
    """Refuse what is no keyword of a DICOM attribute (PS3.6).

    Raises:
        ConfigError: it is none.
    """
    from pydicom.datadict import keyword_dict, tag_for_keyword

    if tag_for_keyword(name) is None:
        raise ConfigError(
            f"'{name}' is no DICOM attribute", where="data.label_attribute", allowed="a keyword, as BodyPartExamined",
            remedy=nearest(name, keyword_dict),
        )  # fmt: skip


def attribute(path: Path, name: str) -> str:
    """An attribute of a file's header as text in one line; empty where it is not there, or it is no DICOM file."""
    import pydicom

    _quiet()
    if not is_dicom(path):
        return ""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=[name])
        return " ".join(text_of(header, name).split())
    except Exception:  # told when the file is read
        return ""


def _kind_in_words(header: Header) -> str:
    from pydicom.uid import UID

    kind = text_of(header, "SOPClassUID")
    return UID(kind).name if kind and UID(kind).name != kind else "of no known kind"


def _require_size(header: Header) -> None:
    rows, columns = (int(value_of(header, name, 0) or 0) for name in ("Rows", "Columns"))
    frames = int(value_of(header, "NumberOfFrames", 1) or 1)
    samples = int(value_of(header, "SamplesPerPixel", 1) or 1)
    if min(rows, columns, frames) < 1 or samples not in (1, 3):
        raise DataError(f"has {rows}x{columns} pixels, {frames} frames, {samples} samples a pixel")
    if rows * columns * frames * samples > MOST_PIXELS:
        raise DataError(f"says that it has {rows}x{columns}x{frames} pixels", allowed=f"up to {MOST_PIXELS:,}")


def _complete_meta(header: Header) -> None:
    """A file without its first group says nothing of how it is coded; it was read in one way, so that is how."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not hasattr(header, "file_meta") or header.file_meta is None:
        header.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = syntax


def _decoded(header: Header, index: int | None) -> tuple[Array, bool]:
    """Frames (n, h, w) as stored, or (n, h, w, 3) in RGB, all or that one; whether they are in RGB."""
    if (plain := plain_gray(header)) is not None:
        return plain[None], False
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"is coded in a way that is not read ({syntax.name})") from None
    usable = [name for name in DECODERS.get(syntax, ("",)) if not name or name in decoder.available_plugins]
    if not usable:
        needed = DECODERS[syntax][0]
        raise DataError(
            f"is coded as {syntax.name}, for which no decoder is installed",
            remedy="pip install 'medistill[jpeg]'" if needed == "pylibjpeg" else f"pip install {needed}",
        )
    problem: Exception | None = None
    unused = int(value_of(header, "HighBit", 0) or 0) + 1 - int(value_of(header, "BitsStored", 0) or 0)
    upper = unused > 0 and not value_of(header, "PixelRepresentation")
    # What is stored in the upper bits would be taken for bits that are not used, and removed.
    how: dict[str, Any] = {"correct_unused_bits": False} if upper else {}
    for name in usable:
        try:
            frames, meta = decoder.as_array(header, index=index, decoding_plugin=name, **how)
            break
        except Exception as refused:  # the next one may read it
            problem = refused
    else:
        assert problem is not None
        raise problem
    rgb = int(meta["samples_per_pixel"]) == 3
    if frames.ndim == (3 if rgb else 2):
        frames = frames[None]
    if not rgb and upper:
        frames = frames >> unused
    if rgb and str(meta["photometric_interpretation"]) != "RGB":
        raise DataError(f"has colours that are not read ({meta['photometric_interpretation']})")
    return frames, rgb


def _is_palette(header: Header) -> bool:
    return text_of(header, "PhotometricInterpretation") == "PALETTE COLOR"


def _colour(header: Header, stored: Array, rgb: bool) -> Array:
    """Colours as ``uint8`` (n, 3, h, w)."""
    if not rgb:
        from pydicom.pixels.processing import apply_color_lut

        stored = np.stack([apply_color_lut(frame, header) for frame in stored])
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    else:
        bits = int(value_of(header, "BitsStored", 8))
    if stored.dtype != np.uint8:
        # A table of 16 bits whose values need but 8 is one that somebody wrote so.
        shift = max(0, bits - 8) if stored.max(initial=0) > 255 else 0
        stored = (stored >> shift).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(stored, -1, 1))


def _gray(header: Header, stored: Array, number: int, modality: str, bits: int) -> Array:
    """One frame (h, w): Hounsfield units, or of that depth as displayed."""
    values = _rescaled(header, stored, number)
    padding = _padding(header, stored)
    inverted = text_of(header, "PhotometricInterpretation") == "MONOCHROME1"
    if not inverted and _is_hounsfield(header, modality, number):
        if padding.any() and not padding.all():
            values = np.where(padding, values[~padding].min(), values)
        # What lies below air is no tissue: padding, which lossy compression blurs into the picture's surroundings.
        return np.rint(values).clip(LEAST_HOUNSFIELD, 32767).astype(np.int16)
    shown = of_interest(header, values, padding, number)
    shown = np.where(padding, 0.0, 1 - shown if inverted else shown)
    kind = pixel_type(bits)
    return np.rint(white_of(kind) * shown).astype(kind)


def _transform(header: Header, number: int) -> Header:
    """Where the rescale of a frame stands: in its functional group, or at the top."""
    found = group_of(header, number, "PixelValueTransformationSequence")
    return header if found is None else found


def _is_hounsfield(header: Header, modality: str, number: int) -> bool:
    """Whether modality values are Hounsfield units: of computed tomography itself, not of a screen shot of it."""
    where = _transform(header, number)
    is_said = text_of(where, "RescaleType") in (HOUNSFIELD, "US", "")  # US: unspecified
    return modality == "CT" and text_of(header, "SOPClassUID") in TOMOGRAPHY and "RescaleSlope" in where and is_said


def _rescaled(header: Header, stored: Array, number: int) -> Array:
    """Modality values (PS3.3 C.11.1), float64."""
    if value_of(header, "ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(stored, header), dtype=np.float64)
    where = _transform(header, number)
    slope, intercept = number_of(where, "RescaleSlope", 1.0), number_of(where, "RescaleIntercept", 0.0)
    return stored.astype(np.float64) * slope + intercept


def _padding(header: Header, stored: Array) -> npt.NDArray[np.bool_]:
    """Pixels that were filled in around the picture (PS3.3 C.7.5.1.1.2), by their stored value."""
    value = value_of(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = value_of(header, "PixelPaddingRangeLimit")
    first, last = int(value), int(value if limit is None else limit)
    low, high = min(first, last), max(first, last)
    return np.asarray((stored >= low) & (stored <= high))


def _spacing(header: Header) -> tuple[float, float] | None:
    measures = group_of(header, 0, "PixelMeasuresSequence") or header
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = value_of(measures, name)
        if value is not None and not isinstance(value, str) and len(value) == 2:
            rows, columns = float(value[0]), float(value[1])
            if 0 < rows < 1000 and 0 < columns < 1000:
                return rows, columns
    return None
