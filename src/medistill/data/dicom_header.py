"""What a DICOM header says of how a frame is displayed."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medistill.data.intensity import between_percentiles
from medistill.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header
    from pydicom.tag import BaseTag

Array = npt.NDArray[Any]


@functools.cache
def _tag(name: str) -> BaseTag:
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    number = tag_for_keyword(name)
    assert number is not None, name
    return Tag(number)


NOT_CODED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Transfer syntaxes of pixels as they are, little endian."""

_AS_TEXT = frozenset({"CS", "SH", "LO", "UI", "DS", "IS"})
"""Kinds of values that are short texts."""


def value_of(header: Header, name: str, default: Any = None) -> Any:
    """An element's value, or the default. A single plain text, or whole number of two bytes, is taken as the file has
    it: pydicom's own way makes an object of each, which is half of what reading a small file takes.
    """
    tag = _tag(name)
    if tag not in header:
        return default
    element = header.get_item(tag)
    if isinstance(element, _raw_element()) and element.value:
        if element.VR in _AS_TEXT and element.value.isascii() and b"\\" not in element.value:
            return element.value.decode("ascii").strip(" \0")
        if element.VR == "US" and len(element.value) == 2:
            return int.from_bytes(element.value, "little" if element.is_little_endian else "big")
    return header[tag].value


@functools.cache
def _raw_element() -> type[Any]:
    from pydicom.dataelem import RawDataElement

    return RawDataElement


def plain_gray(header: Header) -> Array | None:
    """The only frame (h, w) of gray pixels that are not coded, of 8 or 16 bits; None for all else.

    As pydicom's decoder gives it, which takes most of its time to set up: as long as all the rest of a small file.
    """
    if str(header.file_meta.TransferSyntaxUID) not in NOT_CODED:
        return None
    names = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
    numbers = [value_of(header, name) for name in names]
    if not all(isinstance(number, int) for number in numbers) or str(value_of(header, "NumberOfFrames", 1)) != "1":
        return None
    rows, columns, allocated, stored, high, signed, samples = numbers
    usual = samples == 1 and allocated in (8, 16) and signed in (0, 1) and rows and columns
    if not usual or not 1 <= stored <= allocated or high != stored - 1:
        return None
    pixels, length = header.get_item(_tag("PixelData")), rows * columns * allocated // 8
    content = pixels.value if isinstance(pixels, _raw_element()) else None
    if text_of(header, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2") or content is None:
        return None
    if len(content) != length + length % 2:
        return None
    frame = np.frombuffer(content[:length], dtype=f"<{'ui'[signed]}{allocated // 8}").reshape(rows, columns)
    # What lies in bits that are not used is no part of the number (PS3.5 8.1.1).
    return frame if stored == allocated else (frame << (allocated - stored)) >> (allocated - stored)


def text_of(header: Header, name: str) -> str:
    """An element as text, empty where it is not there."""
    return str(value_of(header, name, "") or "").strip()


SCREENSHOT, OFTEN_LETTERED = "1.2.840.10008.5.1.4.1.1.7", frozenset({"US", "SC"})
"""Secondary capture and its kinds (PS3.4 B.5); modalities whose images mostly show letters."""


def says_text(header: Header) -> bool:
    """Whether the header says that pixels tell who the patient is (Burned In Annotation, PS3.3 C.7.6.1)."""
    return text_of(header, "BurnedInAnnotation").upper() == "YES"


def often_shows_text(header: Header, modality: str) -> bool:
    """Whether it is of a kind whose images often show letters: screenshots, ultrasound."""
    kind = text_of(header, "SOPClassUID")
    return modality in OFTEN_LETTERED or kind == SCREENSHOT or kind.startswith(f"{SCREENSHOT}.")


def number_of(header: Header, name: str, default: float) -> float:
    """An element's number, of several the first.

    Raises:
        DataError: it is not finite.
    """
    value = value_of(header, name)
    if value is None or value == "":
        return default
    if isinstance(value, (list, tuple)) or hasattr(value, "append"):
        value = value[0]
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"has {name} {number}")
    return number


def group_of(header: Header, number: int, name: str) -> Header | None:
    """A frame's functional group, or the one that all frames share (PS3.3 C.7.6.16)."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        items = value_of(header, sequence) or []
        if index < len(items) and items[index].get(name):
            found: Header = items[index].get(name)[0]
            return found
    return None


def of_interest(header: Header, values: Array, padding: npt.NDArray[np.bool_], number: int) -> Array:
    """Between 0 and 1, by the first table or window of the header, else from the 0.5th to the 99.5th percentile."""
    if tables := value_of(header, "VOILUTSequence"):
        return _by_table(tables[0], values)
    where = group_of(header, number, "FrameVOILUTSequence") or header
    if value_of(where, "WindowWidth") not in (None, "") and value_of(where, "WindowCenter") not in (None, ""):
        centre, width = number_of(where, "WindowCenter", 0), number_of(where, "WindowWidth", 0)
        function = text_of(where, "VOILUTFunction") or "LINEAR"
        if width >= 1 or (width > 0 and function != "LINEAR"):
            return _by_window(values, centre, width, function)
    there = values[~padding] if not padding.all() else values
    return between_percentiles(values, there)


def _by_window(values: Array, centre: float, width: float, function: str) -> Array:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray(((values - centre) / width + 0.5).clip(0, 1))
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.asarray(((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1))


def _by_table(table: Header, values: Array) -> Array:
    """PS3.3 C.11.2.1.1; the table's greatest value is white, whatever number of bits the descriptor names."""
    entries, first, _ = (int(v) for v in table.LUTDescriptor)
    data = table.LUTData
    numbers = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.asarray(data)
    numbers = numbers[: (entries or 65536)].astype(np.float64)
    if not len(numbers):
        raise DataError("has an empty table of values of interest")
    place = (np.rint(values).astype(np.int64) - first).clip(0, len(numbers) - 1)
    low, high = numbers.min(), numbers.max()
    return np.asarray((numbers[place] - low) / max(high - low, 1))
