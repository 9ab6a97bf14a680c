"""The twelve two-dimensional MedMNIST v2 sets, by name, at 28, 64, 128 or 224 pixels.

The official files are identified by their MD5. A file of that name with other content is
refused by name, because results under an official name must be about the official data;
give its path instead to use it.

Source: Yang et al., MedMNIST v2, Scientific Data 2023.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from importlib import resources
from pathlib import Path

from medistill.data.dataset import Dataset, Description
from medistill.data.npz import read_npz
from medistill.errors import DataError, nearest
from medistill.types import Json

SIZES = (28, 64, 128, 224)
ROOT_VARIABLE = "MEDMNIST_ROOT"


@functools.cache
def catalogue() -> Json:
    """Class names, task, licence, source, flip safety, counts and MD5 of every set."""
    import json

    text = resources.files("medistill.data").joinpath("medmnist.json").read_text(encoding="utf-8")
    loaded: Json = json.loads(text)
    return loaded


def parse_name(source: str) -> tuple[str, int] | None:
    """Split "pathmnist_64" into ("pathmnist", 64); None if it is no MedMNIST name."""
    match = re.fullmatch(r"([a-z]+mnist)(?:[_@](\d+))?", source.lower())
    if not match or match[1] not in catalogue()["sets"]:
        return None
    return match[1], int(match[2] or 28)


def suggest(source: str) -> str:
    """Nearest MedMNIST name, for an error message."""
    return nearest(source, catalogue()["sets"])


def describe(name: str) -> Description:
    """The catalogue's entry as a description."""
    entry = catalogue()["sets"][name]
    task = "multi-label" if entry["task"].startswith("multi-label") else "classification"
    source = f"{entry['source']}; {catalogue()['citation']}"
    return Description(name, tuple(entry["classes"]), entry["flips"], task, entry["licence"], source)  # type: ignore[arg-type]


def describe_by_stem(path: Path, dataset: Dataset) -> Dataset:
    """Take the catalogue's class names for a file named like a set, if the counts agree too.

    A file used by path need not be the official one; where its name, its number of classes
    and its number of images are the catalogue's, the names and the flip safety are taken
    from there and a note says so.
    """
    parsed = parse_name(path.stem)
    if parsed is None or "class names" in " ".join(dataset.description.notes):
        return dataset
    entry = catalogue()["sets"][parsed[0]]
    counts = {name: len(split) for name, split in dataset.splits.items()}
    if dataset.classes != len(entry["classes"]) or counts != entry["counts"]:
        return dataset
    described = Dataset(dataset.splits, describe(parsed[0]))
    return described.with_note(
        f"class names, licence and flip safety taken from MedMNIST's {parsed[0]}, because name and counts agree; "
        "the content was not compared with the official file"
    )


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
    if size not in SIZES:
        raise DataError(f"size {size}", where=source, allowed=", ".join(map(str, SIZES)))
    entry = catalogue()["sets"][name]
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
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(
            f"MD5 {found} is not the official file's",
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
