"""Networks side by side: each on one thread, as many at once as there are cores.

Small networks use several threads badly; side by side, each with one thread, the same cores
train more of them. One thread also makes the result the same on every number of cores.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.jobs import Job, Splits, Tensors, do_job, is_kept, run_prefix
from medistill.evaluation.portions import Portion, portions
from medistill.evaluation.stacked import do_stacked
from medistill.parallel import Workers, go_on, waiting_for_others
from medistill.runtime import device, usable_cores

OVERHEAD = 8
"""Images that cost as much as what a step costs beside its images."""

LOOK_EVERY = 0.2
"""Seconds after which a worker that waits for another's portion looks whether anybody still wants it."""

OnDone = Callable[[Job, TrainedRun], None]


def run_all(
    jobs: Sequence[Job], splits: Splits, advance: Callable[[int], None], done: OnDone, max_workers: int | None = None
) -> None:
    """Do all jobs, the longest first and some in two portions, or on a GPU those together that are trained alike.

    Args:
        jobs: what to do.
        splits: images by digest.
        advance: told how much more of :meth:`Job.work` was done.
        done: given each result as it comes, in this thread or another, never two at once.
        max_workers: networks at once, at most; None: one for each core. A GPU trains them together anyway.
    """
    if (where := device()).type != "cpu":
        do_stacked(jobs, splits, advance, done, where)
        return
    count = max(1, min(len(jobs), max_workers or usable_cores()))
    kept = [is_kept(job) for job in jobs]
    asked, trained = ([i for i, known in enumerate(kept) if known == wanted] for wanted in (True, False))
    cut = portions([_effort(jobs[i], splits) for i in trained], count) if trained else []
    queue = [*map(Portion, asked), *(replace(portion, index=trained[portion.index]) for portion in cut)]
    team = _Team(jobs, splits, queue, advance, done)
    for _ in Workers(count).map(lambda _: team.work(), range(count)):
        pass


def _effort(job: Job, splits: Splits) -> float:
    """Of one network that is trained, in any unit."""
    pixels = math.prod(splits[job.train].shape)
    return (job.work(splits) + OVERHEAD * job.steps(splits)) * job.recipe.width * pixels


class _Team:
    """Workers that take one portion after another of what is to be done, each in a thread of its own."""

    def __init__(
        self,
        jobs: Sequence[Job],
        splits: Splits,
        queue: Sequence[Portion],
        advance: Callable[[int], None],
        done: OnDone,
    ) -> None:
        self.jobs, self.splits, self.waiting = jobs, splits, list(queue)
        self.advance, self.done = advance, done
        self.begun: dict[int, Tensors] = {}
        self.news = threading.Condition()

    def work(self) -> None:
        """Until nothing is left to do."""
        while (portion := self._next()) is not None:
            self._do(portion)

    def _next(self) -> Portion | None:
        """The first that is ready; waits for another's first portion where all that is left goes on with one."""
        with self.news:
            while self.waiting:
                go_on()
                for portion in self.waiting:
                    if portion.start == 0 or portion.index in self.begun:
                        self.waiting.remove(portion)
                        return portion
                with waiting_for_others():
                    self.news.wait(LOOK_EVERY)
        return None

    def _do(self, portion: Portion) -> None:
        job = self.jobs[portion.index]
        until = round((portion.start or portion.end) * job.steps(self.splits))
        if portion.end < 1:
            begun = run_prefix(job, self.splits, self._advance, until)
            with self.news:
                self.begun[portion.index] = begun
                self.news.notify_all()
            return
        run = do_job(job, self.splits, self._advance, begun=self.begun.pop(portion.index, None))
        with self.news:
            self.done(job, run)

    def _advance(self, work: int) -> None:
        with self.news:
            self.advance(work)
