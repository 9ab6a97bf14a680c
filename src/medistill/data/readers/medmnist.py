"""The MedMNIST v2 sets by name: twelve of pictures, at 28, 64, 128 or 224 pixels, six of volumes, at 28 or 64.

The official files are identified by their MD5. A file of that name with other content is
refused by name, because results under an official name must be about the official data;
give its path instead to use it.

Source: Yang et al., MedMNIST v2, Scientific Data 2023.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import ClassVar

from medistill.config import DataConfig
from medistill.data.catalogue import catalogue, describe, parse_name, suggest
from medistill.data.dataset import Dataset
from medistill.data.reader import Reader, register_reader
from medistill.data.readers.npz import read_npz
from medistill.errors import DataError

ROOT_VARIABLE = "MEDMNIST_ROOT"


def read_medmnist(source: str, root: Path | None = None) -> Dataset:
    """Read a set by name, from ``root`` (``MEDMNIST_ROOT`` or ``~/.medmnist``), downloading it if absent.

    Raises:
        DataError: no such set or size, a file whose MD5 is not the official one, or no
            file and no network.
    """
    parsed = parse_name(source)
    if parsed is None:
        raise DataError("is no MedMNIST set", where=source, remedy=suggest(source))
    name, size = parsed
    entry = catalogue()["sets"][name]
    if str(size) not in entry["md5"]:
        raise DataError(f"size {size}", where=source, allowed=", ".join(entry["md5"]))
    file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    folder = root or Path(os.environ.get(ROOT_VARIABLE) or Path.home() / ".medmnist")
    md5 = entry["md5"][str(size)]
    path = folder / file
    if path.is_file():
        _require_md5(path, md5)
    else:
        _download(path, md5)
    return read_npz(path, describe(name))


def _require_md5(path: Path, md5: str) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != md5:
        raise DataError(
            f"MD5 {digest} is not the official file's",
            where=path,
            allowed=md5,
            remedy=f"give the path instead of the name to use it as it is ({path})",
        )


def _download(path: Path, md5: str) -> None:
    import pooch

    url = catalogue()["url"].format(file=path.name)
    pooch.get_logger().setLevel("ERROR")
    try:
        downloader = pooch.HTTPDownloader(progressbar=False, timeout=30)
        pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)
    except (OSError, ValueError) as problem:
        raise DataError(
            "is not there and could not be downloaded",
            where=path,
            remedy=f"download {url} elsewhere and put it at {path}, or set {ROOT_VARIABLE} to the folder that has it",
        ) from problem


@register_reader
class MedMNISTReader(Reader):
    """A set of the catalogue, from the user's folder of them, or downloaded."""

    name: ClassVar[str] = "medmnist"
    accepts: ClassVar[str] = "a MedMNIST name"
    order: ClassVar[int] = 50

    def matches(self, source: str, path: Path) -> bool:
        return not path.exists() and parse_name(source) is not None

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return read_medmnist(source)
