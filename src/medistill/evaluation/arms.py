"""The arms of a comparison: what each trains on. One recipe, one network, the same keys for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medistill.config import EvaluateConfig
from medistill.data.arrays import take
from medistill.data.preprocess import Part
from medistill.evaluation import cache
from medistill.evaluation.cache import part_digest
from medistill.evaluation.jobs import Job, Parts
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.training import Statistics


@dataclass(frozen=True)
class Exam:
    """What trained networks are asked: images prepared and normalised as the arm's training images were."""

    test: Part
    val: Part | None
    statistics: Statistics


@dataclass(frozen=True)
class Arm:
    """One arm: a training set for every run, and the exam.

    Args:
        name: "distilled", "random", "full" or "full_balanced".
        sets: the training set of each run.
        exam: test and validation images.
        first_only: whether only the first kind of network is trained on it.
    """

    name: str
    sets: tuple[Part, ...]
    exam: Exam
    first_only: bool = False


def subset(part: Part, counts: list[int], key: Key, repeat: bool = False) -> Part:
    """Random images of each class without replacement, at most as many as there are.

    With ``repeat`` a class that has too few is gone through again and again until there are enough.
    """
    rows = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(part.labels == label)
        draw = key.child("class", label).numpy()
        passes = -(-count // len(members)) if repeat and count else 1
        rows.append(np.concatenate([draw.permutation(members) for _ in range(passes)])[:count])
    chosen = np.sort(np.concatenate(rows))
    return Part(take(part.pixels, chosen), part.labels[chosen])


def balanced(part: Part, key: Key) -> Part:
    """As many images of each class as the smallest class has; absent classes stay absent."""
    sizes = np.bincount(part.labels)
    return subset(part, [int(sizes[sizes > 0].min())] * len(sizes), key)


def rebalanced(part: Part, key: Key) -> Part:
    """As many images as before, of each class equally many: frequent ones are left out, rare ones repeated."""
    present = np.bincount(part.labels) > 0
    each = -(-len(part) // int(present.sum()))
    return subset(part, [each if here else 0 for here in present], key, repeat=True)


def jobs_of(
    arm: Arm, classes: int, config: EvaluateConfig, parts: Parts, network: str = "convnet", keep: bool = False
) -> list[Job]:
    """A job for each run of an arm; its images are added to ``parts``."""

    def known(part: Part) -> str:
        digest = part_digest(part)
        parts[digest] = part
        return digest

    test, val = known(arm.exam.test), None if arm.exam.val is None else known(arm.exam.val)
    return [
        Job(
            known(part), test, val, arm.exam.statistics, classes,
            config.recipe, config.curve_points, config.seed, index, network, keep,
        )
        for index, part in enumerate(arm.sets)
    ]  # fmt: skip


def train_all(
    arms: list[Arm],
    classes: int,
    config: EvaluateConfig,
    progress: Callable[[int, int, int, int], None],
    keep_networks: bool = False,
) -> dict[str, dict[str, list[cache.Run]]]:
    """Train every arm's networks, or take from the cache what was trained before.

    Args:
        arms: the arms.
        classes: outputs of the networks.
        config: recipe and seed.
        progress: told how much work there is and is done, how many networks are finished, and of how many.
        keep_networks: keep the networks themselves too, so that they can be asked for other images.

    Returns:
        By network of ``config.nets`` and by arm the runs, in the order of the arm's sets.
    """
    parts: Parts = {}
    jobs = {
        net: {
            arm.name: jobs_of(arm, classes, config, parts, net, keep_networks)
            for arm in arms
            if net == config.nets[0] or not arm.first_only
        }
        for net in config.nets
    }
    found = {job: cache.read(job.identity) for own in jobs.values() for each in own.values() for job in each}
    left = [job for job, run in found.items() if run is None]
    total, done = sum(job.work(parts) for job in left), 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        progress(total, done, sum(run is not None for run in found.values()), len(found))

    def keep(job: Job, run: cache.Run) -> None:
        found[job] = run
        cache.write(job.identity, run)

    run_all(left, parts, advance, keep)
    return {
        net: {name: [run for job in each if (run := found[job]) is not None] for name, each in own.items()}
        for net, own in jobs.items()
    }
