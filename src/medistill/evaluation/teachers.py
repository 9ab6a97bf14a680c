"""Soft labels: what networks trained on the real images say of other images.

Source of the idea: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
2015; for distilled images Sun et al., "On the Diversity and Realism of Distilled Dataset",
CVPR 2024. Such labels help any images, real ones too, so whoever claims a gain by
distilled images with them must compare random images with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medistill.aliases import Probabilities, SoftLabels
from medistill.config import LabelConfig, Recipe
from medistill.data.arrays import in_memory
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.data.sampling import balanced_counts
from medistill.evaluation.arms import rebalanced, subset
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.duration import Pace
from medistill.evaluation.jobs import Job, Splits, is_kept
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import images_seen, micro_batch_size
from medistill.nets.zoo import width_for
from medistill.runtime import usable_cores
from medistill.tasks.task import Task

CALIBRATION_IMAGES = 1024
"""Real training images a student is asked about, of each stratum equally many where there are as many."""

FIRST_INDEX = 1_000_000
"""Teachers are numbered from here on, so that no network that is compared with the full data starts like one."""

TRAINING_MB = 30.0
"""Megabytes of what training a network brings along, beside its images and inner values."""

FRAGMENTED = 1.6
"""Training takes as many times what it holds at once (measured at 28 and at 224 pixels)."""

BATCH_COPIES = 8
"""Of a batch's images, float32, while they are changed."""

Shown = Callable[[int, int], None]


def soft_labels(
    train: TensorSplit,
    sets: Sequence[TensorSplit],
    task: Task,
    normalisation: Normalisation,
    config: LabelConfig,
    seed: int,
    progress: Shown | None = None,
    max_workers: int | None = None,
    only_kept: bool = False,
) -> list[SoftLabels]:
    """Mean probabilities of ``config.teachers`` networks trained on the real images, calibrated if asked for.

    A teacher is kept in the cache by everything that determines it, so it is trained once for
    all the images it is asked about; so is the student that calibrates a set's labels. Distilled images are not real
    ones, and a network trained on them may give one answer too often for real images although its ranking of them is
    right. What a student, trained as a recipient would, says of real training images shows by how much, and labels
    are shifted by that. Source of the idea: bias-only calibration of logits, Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017; here the shift is not sent along, it goes into the labels.

    Args:
        train: the real training images.
        sets: images to label, at the size that networks see.
        task: what targets mean.
        normalisation: how all of them are normalised.
        config: number of teachers, their recipe, the temperature, calibration.
        seed: of the teachers.
        progress: told the images of all the work, and those done.
        max_workers: that are trained at once, at most; None: one for each core.
        only_kept: train none.

    Returns:
        For each set (n, outputs), values of half precision.

    Raises:
        LookupError: a network is not in the cache, where none is to be trained.
    """
    every, taught = _together(sets), _taught(train, task, config, seed)
    total = sum(images_seen(config.recipe, len(data)) for data in [*taught, *(sets if config.calibrate else ())])
    course = _Course(task, normalisation, config.recipe, seed, total, progress, max_workers, only_kept)
    mean = np.mean(course.predictions(taught, every), axis=0)
    labels = _halved(task.sharpened(mean, config.temperature))
    by_set = np.split(labels, np.cumsum([len(s) for s in sets])[:-1])
    if not config.calibrate:
        return by_set
    real = calibration_images(train, task, Key(seed).child("calibration"))
    students = [s.with_soft_labels(restored(task, soft)) for s, soft in zip(sets, by_set, strict=True)]
    answers = course.predictions(students, real)
    return [
        _halved(task.shifted(restored(task, soft), task.shift(answer, real.targets)))
        for soft, answer in zip(by_set, answers, strict=True)
    ]


def label_seconds(
    pace: Pace,
    train: TensorSplit,
    sizes: Sequence[int],
    task: Task,
    normalisation: Normalisation,
    config: LabelConfig,
    seed: int,
    max_workers: int | None = None,
) -> float:
    """How long :func:`soft_labels` of sets of so many images takes, at that pace; teachers may be in the cache."""
    course = _Course(task, normalisation, config.recipe, seed, 0, None, max_workers)
    taught = _taught(train, task, config, seed)
    missing = [job for job in course.jobs(taught, train) if not is_kept(job)]
    seconds = pace.seconds([len(train)] * len(missing), sum(sizes), max_workers)
    calibrated = pace.seconds(sizes, min(CALIBRATION_IMAGES, len(train)), max_workers) if config.calibrate else 0.0
    return seconds + calibrated


def _together(sets: Sequence[TensorSplit]) -> TensorSplit:
    return TensorSplit(np.concatenate([s.pixels for s in sets]), np.concatenate([s.targets for s in sets]))


def _taught(train: TensorSplit, task: Task, config: LabelConfig, seed: int) -> list[TensorSplit]:
    """What each teacher is trained on."""
    return [balanced_set(train, task, seed, index) if config.balance else train for index in range(config.teachers)]


def balanced_set(train: TensorSplit, task: Task, seed: int, index: int) -> TensorSplit:
    """As many images as there are, of each stratum equally many; what the teacher of that number is trained on."""
    return rebalanced(train, task, Key(seed).child("teacher", index))


def restored(task: Task, labels: npt.NDArray[np.floating[Any]]) -> SoftLabels:
    """Labels to train on, from those that a package stores."""
    return task.restored(labels.astype(np.float16))


def calibration_images(train: TensorSplit, task: Task, key: Key) -> TensorSplit:
    """Random real training images, equally many of each stratum as far as there are."""
    sizes = task.counts(train.targets)
    per_stratum = -(-CALIBRATION_IMAGES // sum(size > 0 for size in sizes))
    return subset(train, task, balanced_counts(sizes, per_stratum), key)


def training_ways(
    train: TensorSplit, outputs: int, config: LabelConfig, device: torch.device
) -> list[tuple[int, float]]:
    """How many teachers may be trained at once, the most first, and what that takes beside program and images.

    Returns:
        Pairs of networks and megabytes.
    """
    if not config.teachers:
        return [(1, 0.0)]
    image_mb = train.pixels[:1].nbytes / 1e6
    recipe = config.recipe
    width = width_for(train.shape, recipe.width)
    network = ConvNet(train.channels, train.shape, outputs, width, stem=recipe.stem or 0)
    batch = min(recipe.batch_size, len(train))
    held = micro_batch_size(network, batch) * network.activation_mb + BATCH_COPIES * 4 * batch * image_mb
    taught = config.teachers * in_memory(train.pixels.nbytes) / 1e6 if config.balance else 0.0
    asked = min(CALIBRATION_IMAGES, len(train)) * image_mb if config.calibrate else 0.0
    most = min(config.teachers, usable_cores()) if device.type == "cpu" else 1
    return [(n, taught + asked + n * (FRAGMENTED * held + TRAINING_MB)) for n in range(most, 0, -1)]


def _halved(labels: npt.NDArray[np.floating[Any]]) -> SoftLabels:
    """The values that a package can store."""
    return labels.astype(np.float16).astype(np.float32)


@dataclass
class _Course:
    """Trains networks, or takes them from the cache, and counts the images over all that is trained."""

    task: Task
    normalisation: Normalisation
    recipe: Recipe
    seed: int
    total: int
    progress: Shown | None
    max_workers: int | None
    only_kept: bool = False
    done: int = 0
    trained: int = 0

    def predictions(self, sets: Sequence[TensorSplit], asked: TensorSplit) -> list[Probabilities]:
        """Train a network on each set; return its probabilities of the asked images, (n, outputs)."""
        splits: Splits = {data.digest: data for data in (*sets, asked)}
        jobs = self.jobs(sets, asked)
        if self.only_kept and not all(map(is_kept, jobs)):
            raise LookupError("a network is not in the cache")
        runs: dict[int, TrainedRun] = {}

        def keep(job: Job, run: TrainedRun) -> None:
            runs[job.index] = run

        run_all(jobs, splits, self._advance, keep, self.max_workers)
        return [runs[job.index].probabilities for job in jobs]

    def jobs(self, sets: Sequence[TensorSplit], asked: TensorSplit) -> list[Job]:
        """A network for each set, none of which starts like another."""
        first = FIRST_INDEX + self.trained
        self.trained += len(sets)
        return [
            Job(
                data.digest, asked.digest, None, self.normalisation, self.task.kind, self.task.outputs,
                self.recipe, 2, self.seed, first + place, keep=True,
            )
            for place, data in enumerate(sets)
        ]  # fmt: skip

    def _advance(self, images: int) -> None:
        self.done += images
        if self.progress is not None:
            self.progress(self.total, self.done)
