"""The arms of a comparison: what each trains on. One recipe, one network, the same keys for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from medistill.config import EvaluateConfig
from medistill.data.arrays import take
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.data.sampling import balanced_counts, draw_by_stratum
from medistill.evaluation.cache import TrainedRun, read_run, write_run
from medistill.evaluation.jobs import Job, Splits, is_kept
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.tasks.task import Task

MATCHED = "random_matched"
"""Random real images with the package's storage, as many, in as many bytes, with labels of the same kind."""


@dataclass(frozen=True)
class EvaluationData:
    """What trained networks are asked: images prepared and normalised as the arm's training images were."""

    test: TensorSplit
    val: TensorSplit | None
    normalisation: Normalisation


@dataclass(frozen=True)
class Arm:
    """One arm: a training set for every run, and what its networks are asked.

    Args:
        name: "distilled", "random", "random_matched", "full" or "full_balanced".
        sets: the training set of each run.
        asked: test and validation images.
        first_only: whether only the first kind of network is trained on it.
        keys: seed and number of each run's network, where they are not those of a comparison; these networks are
            kept, or found where they were.
    """

    name: str
    sets: tuple[TensorSplit, ...]
    asked: EvaluationData
    first_only: bool = False
    keys: tuple[tuple[int, int], ...] | None = None


def subset(data: TensorSplit, task: Task, counts: list[int], key: Key, repeat: bool = False) -> TensorSplit:
    """Random images of each stratum without replacement, at most as many as there are.

    With ``repeat`` a stratum that has too few is gone through again and again until there are enough.
    """
    drawn = draw_by_stratum(task.membership(data.targets), counts, lambda s: key.child("class", s), repeat)
    chosen = np.sort(np.concatenate(drawn))
    return TensorSplit(take(data.pixels, chosen), data.targets[chosen])


def rebalanced(data: TensorSplit, task: Task, key: Key) -> TensorSplit:
    """As many images as before, of each stratum equally many: frequent ones are left out, rare ones repeated."""
    sizes = task.counts(data.targets)
    per_stratum = -(-len(data) // sum(size > 0 for size in sizes))
    return subset(data, task, balanced_counts(sizes, per_stratum), key, repeat=True)


def jobs_of(
    arm: Arm, task: Task, config: EvaluateConfig, splits: Splits, architecture: str = "convnet", keep: bool = False
) -> list[Job]:
    """A job for each run of an arm; its images are added to ``splits``."""

    def added(data: TensorSplit) -> str:
        splits[data.digest] = data
        return data.digest

    test, val = added(arm.asked.test), None if arm.asked.val is None else added(arm.asked.val)
    keys = arm.keys or [(config.seed, index) for index in range(len(arm.sets))]
    return [
        Job(
            added(data), test, val, arm.asked.normalisation, task.kind, task.outputs,
            config.recipe, config.curve_points, seed, index, architecture, keep or arm.keys is not None,
        )
        for (seed, index), data in zip(keys, arm.sets, strict=True)
    ]  # fmt: skip


def train_all(
    arms: list[Arm],
    task: Task,
    config: EvaluateConfig,
    progress: Callable[[int, int, int, int], None],
    keep_networks: bool = False,
    done: Callable[[str, str, list[TrainedRun]], None] = lambda *_: None,
) -> dict[str, dict[str, list[TrainedRun]]]:
    """Train every arm's networks, or take from the cache what was trained before.

    Args:
        arms: the arms.
        task: what the networks learn.
        config: recipe and seed.
        progress: told how much work there is and is done, how many networks are finished, and of how many.
        keep_networks: keep the networks themselves too, so that they can be asked for other images.
        done: told an architecture, an arm and its runs, once all of them are there.

    Returns:
        By network of ``config.architectures`` and by arm the runs, in the order of the arm's sets.
    """
    splits: Splits = {}
    jobs = {
        architecture: {
            arm.name: jobs_of(arm, task, config, splits, architecture, keep_networks)
            for arm in arms
            if architecture == config.architectures[0] or not arm.first_only
        }
        for architecture in config.architectures
    }
    every = [job for by_arm in jobs.values() for arm_jobs in by_arm.values() for job in arm_jobs]
    left = {(architecture, name): set(own) for architecture, by_arm in jobs.items() for name, own in by_arm.items()}

    def finished(runs: Mapping[Job, TrainedRun]) -> None:
        for (architecture, name), own in list(left.items()):
            if own <= runs.keys():
                del left[architecture, name]
                done(architecture, name, [runs[job] for job in jobs[architecture][name]])

    runs = run_cached(
        every, splits, lambda total, done, jobs, known: progress(total, done, known, jobs), None, finished
    )
    return {
        architecture: {name: [runs[job] for job in arm_jobs] for name, arm_jobs in by_arm.items()}
        for architecture, by_arm in jobs.items()
    }


def run_cached(
    jobs: list[Job],
    splits: Splits,
    news: Callable[[int, int, int, int], None] = lambda *_: None,
    max_workers: int | None = None,
    finished: Callable[[Mapping[Job, TrainedRun]], None] = lambda _: None,
) -> dict[Job, TrainedRun]:
    """Do those jobs that the cache does not know, and keep what they give.

    Args:
        jobs: what is wanted.
        splits: images by digest.
        news: told all the work, what is done of it, the number of jobs, and how many of them are known.
        max_workers: networks trained at once, at most; None: one for each core.
        finished: told all runs that there are, whenever one is added.
    """
    cached = {job: read_run(job.identity) for job in jobs}
    runs = {job: run for job, run in cached.items() if run is not None}
    left = [job for job in cached if job not in runs]
    total, done = sum(0 if is_kept(job) else job.work(splits) for job in left), 0
    finished(runs)

    def advance(work: int) -> None:
        nonlocal done
        done += work
        news(total, done, len(cached), len(runs))

    def keep(job: Job, run: TrainedRun) -> None:
        runs[job] = run
        write_run(job.identity, run)
        finished(runs)

    run_all(left, splits, advance, keep, max_workers)
    return runs
