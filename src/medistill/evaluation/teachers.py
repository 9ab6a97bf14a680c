"""Soft labels: what networks trained on the real images say of other images.

Source of the idea: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
2015; for distilled images Sun et al., "On the Diversity and Realism of Distilled Dataset",
CVPR 2024. Such labels help any images, real ones too, so whoever claims a gain by
distilled images with them must compare random images with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medistill.config import LabelConfig
from medistill.data.preprocess import Part
from medistill.evaluation.arms import rebalanced
from medistill.evaluation.cache import Run, part_digest
from medistill.evaluation.jobs import Job, Parts
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.training import Statistics

FIRST_INDEX = 1_000_000
"""Teachers are numbered from here on, so that no network of a comparison starts like one of them."""


def soft_labels(
    train: Part,
    sets: Sequence[Part],
    statistics: Statistics,
    classes: int,
    config: LabelConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Mean probabilities of ``config.teachers`` networks trained on the real images.

    A teacher is kept in the cache by everything that determines it, so it is trained once for
    all the images it is asked about.

    Args:
        train: the real training images.
        sets: images to label, at the size that networks see.
        statistics: how all of them are normalised.
        classes: number of classes.
        config: number of teachers, their recipe, the temperature.
        seed: of the teachers.
        progress: told the images of all the work, and those done.

    Returns:
        For each set (n, classes), values of half precision, each row about one in sum.
    """
    every = Part(np.concatenate([s.pixels for s in sets]), np.concatenate([s.labels for s in sets]))
    asked = part_digest(every)
    parts: Parts = {asked: every}
    jobs = []
    for index in range(config.teachers):
        key = Key(seed).child("teacher", index)
        shown = rebalanced(train, key) if config.balance else train
        parts[part_digest(shown)] = shown
        jobs.append(
            Job(
                part_digest(shown), asked, None, statistics, classes,
                config.recipe, 2, seed, FIRST_INDEX + index, keep=True,
            )
        )  # fmt: skip
    total, done = sum(job.work(parts) for job in jobs), 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(total, done)

    found: dict[int, Run] = {}

    def keep(job: Job, run: Run) -> None:
        found[job.index] = run

    run_all(jobs, parts, advance, keep)
    mean = np.mean([found[job.index].probabilities for job in jobs], axis=0)
    sharpened = mean ** (1 / config.temperature)
    labels = (sharpened / sharpened.sum(1, keepdims=True)).astype(np.float16).astype(np.float32)
    return np.split(labels, np.cumsum([len(s) for s in sets])[:-1])
