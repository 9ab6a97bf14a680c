"""What a data set holds, counted: patients, sites, sizes, intensities."""

from __future__ import annotations

from collections import Counter

import numpy as np

from medistill.aliases import Json
from medistill.data.dataset import Dataset
from medistill.data.image import shape_in_words
from medistill.data.intensity import Range

SHOWN = 20
"""Sites or sizes that are counted each; further ones together."""


def overview(dataset: Dataset) -> Json:
    """Counts for people to look at.

    Returns:
        ``patients`` by split, where they are known; ``sites``: of each site or scanner its images by split and its
        training images in each stratum; ``sizes`` of the files, where they differ, and how many have them;
        ``spacing`` in millimetres; ``ranges`` by split: ``all`` pixels, and all but 0.1 % at either end (``most``);
        what is not finite does not count.
    """
    splits = dataset.splits
    spacing = dataset.description.spacing
    return {
        "patients": {
            name: len(np.unique(part.patients)) for name, part in splits.items() if part.patients is not None
        },
        "sites": _sites(dataset),
        "sizes": _sizes(dataset),
        "spacing": None if spacing is None else [float(f"{step:.4g}") for step in spacing],
        "ranges": {
            name: {"all": _finite(part.extremes), "most": _finite(part.usual)}
            for name, part in splits.items()
            if part.images.size
        },
    }


def _finite(values: Range) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _sites(dataset: Dataset) -> Json:
    named = {name: part.sites for name, part in dataset.splits.items() if part.sites is not None}
    counts = Counter(str(site) for sites in named.values() for site in sites)
    found: Json = {}
    for site, _ in counts.most_common(SHOWN):
        train = dataset.train.take(np.flatnonzero(named["train"] == site)) if "train" in named else None
        found[site] = {
            "images": {name: int((sites == site).sum()) for name, sites in named.items()},
            "per_stratum": [] if train is None else dataset.task.counts(train.targets),
        }
    left = sum(number for _, number in counts.most_common()[SHOWN:])
    if left:
        found["others"] = {"images": {"all": left}, "per_stratum": []}
    return found


def _sizes(dataset: Dataset) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in dataset.splits.values():
        if part.sizes is not None:
            counts.update(shape_in_words(tuple(map(int, size))) for size in part.sizes)
    found = dict(counts.most_common(SHOWN))
    left = sum(counts.values()) - sum(found.values())
    return {**found, "others": left} if left else found
