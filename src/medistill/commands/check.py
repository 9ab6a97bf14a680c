"""``check``: list every problem of a data set before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

from medistill.config import DataConfig
from medistill.data.checks import check as find_problems
from medistill.data.load import load
from medistill.types import Json


def check(data: str | Path, *, ipc: int | None = None, config: DataConfig | None = None) -> Json:
    """Check a data set.

    Args:
        data: path, folder, MedMNIST name or phantom.
        ipc: images per class that will be asked for, if known.
        config: how to read the data.

    Returns:
        ``name``, ``classes``, ``fingerprint`` (SHA-256, counts, sizes), ``notes``, ``problems``
        (each with ``level``, ``kind``, ``found``, ``remedy``) and ``usable``.

    Raises:
        DataError: the source cannot be read at all.
    """
    dataset = load(data, config)
    problems = find_problems(dataset, ipc)
    description = dataset.description
    return {
        "name": description.name,
        "classes": list(description.class_names),
        "licence": description.licence,
        "source": description.source,
        "flips": description.flips,
        "fingerprint": dataset.fingerprint,
        "notes": list(description.notes),
        "problems": [p.as_json() for p in problems],
        "usable": not any(p.level == "blocking" for p in problems),
    }
