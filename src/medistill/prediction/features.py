"""What is cheap to know of a data set before distilling it.

The feasibility study found that what a small random sample of the data achieves foretells what
distilled images will. Here small networks are trained for a short time on such samples and on all
images, and asked about training images that were held out. Validation and test images are never seen.

Source: "Dataset Distillation in Medical Imaging: A Feasibility Study", arXiv 2407.14429.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from medistill.config import Recipe
from medistill.data.preprocess import Part, Prepared
from medistill.errors import DataError
from medistill.evaluation import cache
from medistill.evaluation.arms import subset
from medistill.evaluation.cache import Run, part_digest
from medistill.evaluation.jobs import Job, Parts
from medistill.evaluation.metrics import metrics
from medistill.evaluation.workers import run_all
from medistill.files import canonical_json, read_cached, sha256_text, write_cached
from medistill.keys import Key
from medistill.nets.training import Statistics, images_seen
from medistill.runtime import device_key

VERSION = 3
"""Raised whenever the same data would give other features."""

HELD = 1000
"""Training images that networks are asked about, at most, and at most a quarter of them."""

SHORT = Recipe(epochs=5, least_steps=200, steps_per_doubling=20, most_steps=400, width=32)
"""How small networks are trained on random samples."""

LONG = Recipe(epochs=5, least_steps=600, steps_per_doubling=20, most_steps=800, width=32)
"""How one is trained on all images; after half as many steps it is still far from what it reaches."""

LEAST_DRAWS, MOST_DRAWS = 3, 12
"""Random samples of the size asked for. What a single image per class gives differs most from draw to draw."""

DRAWN = 20_000
"""Images that go through networks trained on random samples, within those bounds."""

Advance = Callable[[float], None]


def features(
    prepared: Prepared, counts: list[int], seed: int = 0, advance: Advance = lambda _: None
) -> dict[str, float]:
    """Features of a data set for so many images; found in the user's cache when they were computed before.

    Args:
        prepared: the data; only training images are used.
        counts: images of each class that a package would have the bytes of.
        seed: of samples and networks.
        advance: told each image that went through a network.

    Returns:
        ``random.<metric>`` and ``all.<metric>`` of networks trained on random images of that number and on all, for
        balanced accuracy and AUROC; ``classes``, ``images`` (asked for), ``training_images``, ``share``, ``majority``
        (share of the largest class) and ``pixels``.

    Raises:
        DataError: no class has two training images.
    """
    train = prepared.train
    told = {"version": VERSION, "data": part_digest(train), "counts": counts, "seed": seed}
    told |= {"recipes": [r.model_dump(mode="json") for r in (SHORT, LONG)], **device_key()}
    told |= {"flips": prepared.dataset.description.flips}
    identity = sha256_text(canonical_json(told))
    known = read_cached("features", identity)
    if known is not None:
        return {name: float(known[name]) for name in sorted(known)}
    computed = _features(prepared, counts, Key(seed).child("features"), seed, advance)
    found = dict(sorted(computed.items()))
    import torch

    write_cached("features", identity, {k: torch.tensor(v, dtype=torch.float64) for k, v in found.items()})
    return found


def work(prepared: Prepared, counts: list[int]) -> int:
    """Images that go through networks for the features of so many images, at most."""
    return _draws(counts) * images_seen(SHORT, sum(counts)) + images_seen(LONG, len(prepared.train))


def _draws(counts: list[int]) -> int:
    return min(MOST_DRAWS, max(LEAST_DRAWS, DRAWN // images_seen(SHORT, sum(counts))))


def _features(prepared: Prepared, counts: list[int], key: Key, seed: int, advance: Advance) -> dict[str, float]:
    train, classes = prepared.train, prepared.classes
    held, rest = _held_out(train, classes, key.child("held"))
    if not len(held):
        raise DataError(
            "no class has two training images, so none can be held out",
            where=prepared.dataset.description.name,
            remedy="a prediction needs more images",
        )
    sets = {
        "random": [subset(rest, counts, key.child("random", i)) for i in range(_draws(counts))],
        "all": [rest],
    }
    found = _networks(prepared, sets, held, seed, advance)
    sizes = np.bincount(train.labels, minlength=classes)
    return found | {
        "classes": float(classes),
        "images": float(sum(counts)),
        "training_images": float(len(train)),
        "share": sum(counts) / len(train),
        "majority": float(sizes.max() / sizes.sum()),
        "pixels": float(math.prod(train.pixels.shape[2:])),
    }


def _held_out(train: Part, classes: int, key: Key) -> tuple[Part, Part]:
    """Images to ask about, as many of each class, and the others. A class of one is not asked about."""
    sizes = np.bincount(train.labels, minlength=classes)
    each = max(1, min(HELD, len(train) // 4) // classes)
    rows = np.zeros(len(train), dtype=bool)
    for label in range(classes):
        members = np.flatnonzero(train.labels == label)
        rows[key.child(label).numpy().permutation(members)[: min(each, sizes[label] // 2)]] = True
    return Part(train.pixels[rows], train.labels[rows]), Part(train.pixels[~rows], train.labels[~rows])


def _networks(
    prepared: Prepared, sets: dict[str, list[Part]], held: Part, seed: int, advance: Advance
) -> dict[str, float]:
    how = prepared.preprocessing
    statistics = Statistics(how.mean, how.std, prepared.dataset.description.flips)
    parts: Parts = {part_digest(held): held}
    jobs: dict[int, str] = {}
    todo = []
    for kind, each in sets.items():
        recipe = LONG if kind == "all" else SHORT
        for part in each:
            digest = part_digest(part)
            parts[digest] = part
            index = len(jobs)
            jobs[index] = kind
            todo.append(Job(digest, part_digest(held), None, statistics, prepared.classes, recipe, 2, seed, index))
    reached: dict[str, list[dict[str, float]]] = {kind: [] for kind in sets}

    def take(job: Job, run: Run) -> None:
        reached[jobs[job.index]].append(metrics(run.probabilities, held.labels))

    def keep(job: Job, run: Run) -> None:
        cache.write(job.identity, run)
        take(job, run)

    # Sizes of one data set share the network of all images.
    known = {job.index: cache.read(job.identity) for job in todo}
    for job in todo:
        run = known[job.index]
        if run is not None:
            take(job, run)
    run_all([job for job in todo if known[job.index] is None], parts, advance, keep)
    return {
        # Where images of one class only could be held out no area is defined; that says nothing, as chance does.
        f"{kind}.{metric}": float(np.mean(sorted(np.nan_to_num(r[metric], nan=0.5) for r in each)))
        for kind, each in reached.items()
        for metric in ("balanced_accuracy", "auroc")
    }
