"""A zip of what could be a folder: class folders, or images with a table of labels.

It is unpacked beside the cache for as long as it is read, and what was unpacked is removed.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar

from medistill.config import DataConfig
from medistill.data.arrays import scratch
from medistill.data.dataset import Dataset
from medistill.data.reader import Reader, reader_for, register_reader
from medistill.data.readers.folder import is_hidden
from medistill.data.table import SUFFIXES as TABLES
from medistill.errors import DataError
from medistill.files import refusing_output, require_room

MOST_FILES = 2_000_000
"""In a zip; more is refused before it is unpacked."""


def read_zip(path: Path, config: DataConfig) -> Dataset:
    """Read a zip as the folder that it holds.

    Raises:
        DataError: it is damaged, encrypted or too large, or what it holds cannot be read.
        OutputError: there is no room to unpack it.
    """
    folder = scratch()
    with refusing_output(folder, "MEDISTILL_CACHE"), tempfile.TemporaryDirectory(dir=folder, prefix="zip-") as made:
        top = Path(made)
        _unpack(path, top)
        try:
            inside = _lowest(top)
            if (reader := reader_for(str(inside), inside, config)) is None:
                raise DataError("holds neither class folders nor a table of labels with images", where=inside)
            return reader.read(str(inside), inside, config)
        except DataError as problem:  # what was unpacked is not what the user has
            raise DataError(str(problem).replace(made, str(path))) from problem


def _unpack(path: Path, top: Path) -> None:
    """Write the files of a zip, each below the folder, whatever path it is given there.

    Raises:
        DataError: it is damaged or encrypted, or has too many files.
        OutputError: there is no room.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            if len(members) > MOST_FILES:
                raise DataError(f"holds {len(members):,} files", where=path, allowed=f"up to {MOST_FILES:,}")
            require_room(top.parent, sum(one.file_size for one in members), path)
            archive.extractall(top)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as problem:
        reason = " ".join(str(problem).split())[:160]
        raise DataError(
            f"cannot be unpacked ({reason})", where=path, remedy="pack it again, without a password"
        ) from problem


def _lowest(top: Path) -> Path:
    """The folder that was packed, where all lies in one."""
    visible = [entry for entry in top.iterdir() if not is_hidden(entry.name)]
    alone = visible[0] if len(visible) == 1 and visible[0].is_dir() else None
    if alone is not None and any(entry.is_dir() or entry.suffix.lower() in TABLES for entry in alone.iterdir()):
        return _lowest(alone)
    return top


@register_reader
class ZipReader(Reader):
    """A zip of class folders, or of images and a table."""

    name: ClassVar[str] = "zip"
    accepts: ClassVar[str] = "a .zip of either"
    order: ClassVar[int] = 20

    def matches(self, source: str, path: Path) -> bool:
        if path.suffix.lower() != ".zip" or not path.is_file() or not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        # Arrays are the next reader's, and a package is no data set.
        return not any(name.endswith(".npy") or Path(name).name == "manifest.json" for name in names)

    def wanted(self, config: DataConfig) -> bool:
        return True

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return read_zip(path, config)
