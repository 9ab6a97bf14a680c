"""Soft labels: what networks trained on the real images say of other images.

Source of the idea: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
2015; for distilled images Sun et al., "On the Diversity and Realism of Distilled Dataset",
CVPR 2024. Such labels help any images, real ones too, so whoever claims a gain by
distilled images with them must compare random images with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medistill.config import LabelConfig, Recipe
from medistill.data.arrays import in_memory
from medistill.data.preprocess import Part
from medistill.evaluation.arms import rebalanced
from medistill.evaluation.cache import Run, part_digest
from medistill.evaluation.calibration import IMAGES, asked_images, class_shift, shifted
from medistill.evaluation.jobs import Job, Parts
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import Statistics, at_once, images_seen
from medistill.runtime import usable_cores
from medistill.types import Probabilities

FIRST_INDEX = 1_000_000
"""Teachers are numbered from here on, so that no network of a comparison starts like one of them."""

TRAINING_MB = 30.0
"""Megabytes of what training brings along, where networks are trained in this process."""

WORKER_MB = 260.0
"""Megabytes of a process that trains a network, before any image."""

FRAGMENTED = 1.6
"""Training takes as many times what it holds at once (measured at 28 and at 224 pixels)."""

BATCH_COPIES = 8
"""Of a batch's images, float32, while they are changed."""

Shown = Callable[[int, int], None]


def soft_labels(
    train: Part,
    sets: Sequence[Part],
    statistics: Statistics,
    classes: int,
    config: LabelConfig,
    seed: int,
    progress: Shown | None = None,
    side_by_side: int | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Mean probabilities of ``config.teachers`` networks trained on the real images, calibrated if asked for.

    A teacher is kept in the cache by everything that determines it, so it is trained once for
    all the images it is asked about; so is the student that calibrates a set's labels.

    Args:
        train: the real training images.
        sets: images to label, at the size that networks see.
        statistics: how all of them are normalised.
        classes: number of classes.
        config: number of teachers, their recipe, the temperature, calibration.
        seed: of the teachers.
        progress: told the images of all the work, and those done.
        side_by_side: that are trained side by side, at most; None: one for each core.

    Returns:
        For each set (n, classes), values of half precision, each row about one in sum.
    """
    every = Part(np.concatenate([s.pixels for s in sets]), np.concatenate([s.labels for s in sets]))
    keys = [Key(seed).child("teacher", index) for index in range(config.teachers)]
    shown = [rebalanced(train, key) if config.balance else train for key in keys]
    trained = [*shown, *(sets if config.calibrate else ())]
    total = sum(images_seen(config.recipe, len(part)) for part in trained)
    course = _Course(statistics, classes, config.recipe, seed, total, progress, side_by_side)
    mean = np.mean(course.ask(shown, every), axis=0)
    sharpened = mean ** (1 / config.temperature)
    labels = _halved(sharpened / sharpened.sum(1, keepdims=True))
    each = np.split(labels, np.cumsum([len(s) for s in sets])[:-1])
    if not config.calibrate:
        return each
    real = asked_images(train, Key(seed).child("calibration"))
    students = [replace(s, soft_labels=soft) for s, soft in zip(sets, each, strict=True)]
    said = course.ask(students, real)
    return [_halved(shifted(soft, class_shift(s, real.labels))) for soft, s in zip(each, said, strict=True)]


def training_ways(train: Part, classes: int, config: LabelConfig, device: torch.device) -> list[tuple[int, float]]:
    """How many teachers may be trained at once, the most first, and what that takes beside program and images.

    Returns:
        Pairs of networks and megabytes.
    """
    if not config.teachers:
        return [(1, 0.0)]
    channels, height, width = train.pixels.shape[1:]
    network, image_mb = ConvNet(channels, height, width, classes, config.recipe.width), train.pixels[:1].nbytes / 1e6
    batch = min(config.recipe.batch, len(train))
    held = at_once(network, batch) * network.activation_mb + BATCH_COPIES * 4 * batch * image_mb
    shown = config.teachers * in_memory(train.pixels.nbytes) / 1e6 if config.balance else 0.0
    asked = min(IMAGES, len(train)) * image_mb if config.calibrate else 0.0
    most = min(config.teachers, usable_cores()) if device.type == "cpu" else 1
    program = {n: n * WORKER_MB if n > 1 else TRAINING_MB for n in range(most, 0, -1)}
    return [(n, shown + asked + FRAGMENTED * n * held + mb) for n, mb in program.items()]


def _halved(labels: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """The values that a package can store."""
    return labels.astype(np.float16).astype(np.float32)


@dataclass
class _Course:
    """Trains networks, or takes them from the cache, and counts the images over all that is trained."""

    statistics: Statistics
    classes: int
    recipe: Recipe
    seed: int
    total: int
    progress: Shown | None
    side_by_side: int | None
    done: int = 0
    trained: int = 0

    def ask(self, sets: Sequence[Part], asked: Part) -> list[Probabilities]:
        """Train a network on each set; return what each says of the asked images, (n, classes)."""
        parts: Parts = {part_digest(part): part for part in (*sets, asked)}
        exam = part_digest(asked)
        jobs = []
        for part in sets:
            jobs.append(
                Job(
                    part_digest(part), exam, None, self.statistics, self.classes,
                    self.recipe, 2, self.seed, FIRST_INDEX + self.trained, keep=True,
                )
            )  # fmt: skip
            self.trained += 1
        found: dict[int, Run] = {}

        def keep(job: Job, run: Run) -> None:
            found[job.index] = run

        run_all(jobs, parts, self._advance, keep, self.side_by_side)
        return [found[job.index].probabilities for job in jobs]

    def _advance(self, images: int) -> None:
        self.done += images
        if self.progress is not None:
            self.progress(self.total, self.done)
