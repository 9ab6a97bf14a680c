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


def value_of(header: Header, name: str, default: Any = None) -> Any:
    """An element's value, or the default; a third of the time of pydicom's own way by name where it is absent."""
    tag = _tag(name)
    return header[tag].value if tag in header else default


def text_of(header: Header, name: str) -> str:
    """An element as text, empty where it is not there."""
    return str(value_of(header, name, "") or "").strip()


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
