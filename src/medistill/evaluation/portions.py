"""Who does what when: jobs cut in two where whole ones would leave cores idle.

Five equal networks on two cores take three rounds, though the work fills two and a half. A training
that can stop and go on elsewhere closes the gap. Jobs are cut as by McNaughton, "Scheduling with deadlines and
loss functions", Management Science, 1959: nothing need end later than the longest job or the mean of the
workers, whichever is more. Whoever is free takes what comes next, as nobody knows how long work takes, so
unequal jobs may end somewhat later than that, but not later than whole ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORTH_CUTTING = 0.97
"""Jobs are cut only where that ends within this share of the time that whole ones take."""


@dataclass(frozen=True)
class Portion:
    """A part of a job's work.

    Args:
        index: of the job.
        start, end: shares of its work, 0 to 1.
    """

    index: int
    start: float = 0.0
    end: float = 1.0


def portions(efforts: Sequence[float], workers: int) -> list[Portion]:
    """What to do, in the order in which a worker that has nothing to do takes it.

    Args:
        efforts: of the jobs, above 0, in any unit.
        workers: how many work side by side, at least 1.

    Returns:
        First those that another worker will go on with, then whole jobs, then what is left of those that were
        begun; the longest first in each. Nothing is cut where that saves little.
    """
    whole = _longest_first([Portion(index) for index in range(len(efforts))], efforts)
    cut = _cut(efforts, workers)
    worth = seconds_of(cut, efforts, workers) <= WORTH_CUTTING * seconds_of(whole, efforts, workers)
    return cut if worth else whole


def seconds_of(queue: Sequence[Portion], efforts: Sequence[float], workers: int, alone: float = 1.0) -> float:
    """When the last of them ends, in the efforts' unit, if whoever has nothing to do takes the first that is ready.

    What is left of a job is ready when its beginning is done. Where one worker is left, its work takes
    ``alone`` times as long as beside others.
    """
    left, free, begun = list(queue), [0.0] * workers, dict.fromkeys(range(len(efforts)), 0.0)
    for portion in queue:
        if portion.end < 1:
            begun[portion.index] = float("inf")
    while left:
        now = min(free)
        ready = next((p for p in left if p.start == 0 or begun[p.index] <= now), None)
        if ready is None:  # wait for whoever ends next
            free[free.index(now)] = min(t for t in begun.values() if t > now)
            continue
        left.remove(ready)
        end = now + (ready.end - ready.start) * efforts[ready.index]
        free[free.index(now)] = end
        if ready.end < 1:
            begun[ready.index] = end
    *_, before, last = 0.0, *sorted(free)
    return before + alone * (last - before)


def _cut(efforts: Sequence[float], workers: int) -> list[Portion]:
    """McNaughton's schedule: the workers' times laid end to end, filled job by job."""
    span = max(sum(efforts) / workers, max(efforts))
    firsts, whole, seconds, position = [], [], [], 0.0
    for portion in _longest_first([Portion(index) for index in range(len(efforts))], efforts):
        effort = efforts[portion.index]
        beyond = position + effort - span
        if beyond <= 1e-9 * span or beyond >= effort * (1 - 1e-9):
            whole.append(portion)
            position = effort + (position if beyond <= 1e-9 * span else 0.0)
            continue
        # What lies beyond the worker's time lies at the beginning of the next one's, so it is done first.
        firsts.append(Portion(portion.index, end=beyond / effort))
        seconds.append(Portion(portion.index, start=beyond / effort))
        position = beyond
    return [*_longest_first(firsts, efforts), *whole, *_longest_first(seconds, efforts)]


def _longest_first(some: Sequence[Portion], efforts: Sequence[float]) -> list[Portion]:
    return sorted(some, key=lambda p: -(p.end - p.start) * efforts[p.index])
