"""Arrays larger than is good for memory: they lie in files, are read by blocks and let go again.

A mapped file counts as memory of the process for as long as its pages stay mapped, so whoever
reads one row by row calls :func:`release` now and then; the system's page cache keeps the pages.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medistill.files import refusing_output, user_cache

LARGE = 2**29
"""Bytes from which an array is kept in a file."""

BLOCK = 2**25
"""Bytes that are read at once, about."""

Array = npt.NDArray[Any]


def in_memory(size: int) -> int:
    """Bytes in memory, at a time, of an array of so many that :func:`empty` makes."""
    return size if size < LARGE else BLOCK


def held(array: Array) -> int:
    """Bytes in memory, at a time, of an array: all of them, or a block of one that lies in a file."""
    return array.nbytes if _file_below(array) is None else min(array.nbytes, BLOCK)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8) -> Array:
    """An array to fill: in memory, or from :data:`LARGE` on in a file of the user's cache that goes away with it.

    Raises:
        OutputError: the file cannot be made.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    with refusing_output(folder := scratch(), "MEDISTILL_CACHE"), tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), size)
        return np.memmap(file, dtype, "w+", shape=shape)


def _reserve(file: int, size: int) -> None:
    """Have a full disk found now, not by a signal while the file is filled through a map.

    Raises:
        OSError: there is no room. Where the system cannot reserve any, nothing is.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as problem:
            if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def scratch() -> Path:
    """Where large arrays lie while they are needed."""
    folder = user_cache() / "scratch"
    with refusing_output(folder, "MEDISTILL_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_array(path: Path) -> Array:
    """A ``.npy`` file as an array that stays in the file; writing to it changes nothing there.

    Raises:
        OSError, ValueError: no readable file, or one that holds pickled objects.
    """
    return np.load(path, mmap_mode="c", allow_pickle=False)


def blocks(array: Array, row_bytes: int = 0) -> Iterator[tuple[int, Array]]:
    """The array in order, as pairs of the first row's number and some rows.

    Args:
        array: one row or more.
        row_bytes: what is made of a row, where that takes more than the row itself.
    """
    rows = max(1, BLOCK // max(1, array[:1].nbytes, row_bytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]
        release(array)


def take(array: Array, rows: npt.NDArray[np.integer[Any]]) -> Array:
    """The rows named, in that order, as a new array."""
    out = empty((len(rows), *array.shape[1:]), array.dtype)
    for start, part in blocks(out):
        part[...] = array[rows[start : start + len(part)]]
        release(array)
    return out


class Hash(Protocol):
    """What :mod:`hashlib` makes."""

    def update(self, data: Any, /) -> None: ...


def feed(digest: Hash, array: Array) -> None:
    """Let a digest take in the content, row after row."""
    for _, block in blocks(array):
        digest.update(np.ascontiguousarray(block).data)


def release(array: Array) -> None:
    """Unmap the pages of an array that lies in a file; its content stays as it is."""
    file = _file_below(array)
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def _file_below(array: Array) -> mmap.mmap | None:
    """The mapped file that an array, or what it is a view of, lies in."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
