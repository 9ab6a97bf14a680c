"""The catalogue of MedMNIST v2: what is known of each set besides its pixels.

Source: Yang et al., MedMNIST v2, Scientific Data 2023.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from pathlib import Path

from medistill.aliases import Json
from medistill.data.dataset import Dataset, Description
from medistill.errors import nearest
from medistill.tasks.task import make_task


@functools.cache
def catalogue() -> Json:
    """Class names, task, licence, source, flip safety, counts and MD5 of every set."""
    text = resources.files("medistill.data").joinpath("medmnist.json").read_text(encoding="utf-8")
    loaded: Json = json.loads(text)
    return loaded


def parse_name(source: str) -> tuple[str, int] | None:
    """Split "pathmnist_64" into ("pathmnist", 64); None if it is no MedMNIST name."""
    match = re.fullmatch(r"([a-z]+mnist(?:3d)?)(?:[_@](\d+))?", source.lower())
    if not match or match[1] not in catalogue()["sets"]:
        return None
    return match[1], int(match[2] or 28)


def suggest(source: str) -> str:
    """Nearest MedMNIST name, for an error message."""
    return nearest(source, catalogue()["sets"])


def describe(name: str) -> Description:
    """The catalogue's entry as a description."""
    entry = catalogue()["sets"][name]
    source = f"{entry['source']}; {catalogue()['citation']}"
    task = make_task(entry["task"], entry["classes"])
    return Description(name, task, entry["flips"], entry["licence"], source)


def describe_by_stem(path: Path, dataset: Dataset) -> Dataset:
    """Take the catalogue's class names for a file named like a set, if the counts agree too.

    A file used by path need not be the official one; where its name, its number of classes
    and its number of images are the catalogue's, the names and the flip safety are taken
    from there and a note says so.
    """
    parsed = parse_name(path.stem)
    if parsed is None:
        return dataset
    entry = catalogue()["sets"][parsed[0]]
    counts = {name: len(split) for name, split in dataset.splits.items()}
    if dataset.task.outputs != len(entry["classes"]) or counts != entry["counts"]:
        return dataset
    described = Dataset(dataset.splits, describe(parsed[0]))
    return described.with_note(
        f"class names, licence and flip safety taken from MedMNIST's {parsed[0]}, because name and counts agree; "
        "the content was not compared with the official file"
    )
