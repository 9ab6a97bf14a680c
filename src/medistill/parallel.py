"""Independent pieces of work side by side, each on one thread.

A parallel region within an operation waits for all its threads, thousands of times a second; where another program
has one of the cores, all wait for it. Pieces that need nothing of one another wait once, when they are put together.
How the work is divided depends on the work alone, so results have the same bytes with any number of workers.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from medistill.runtime import usable_cores

PIECE = 32
"""Images that are worth a piece of work; in smaller pieces what a call costs beside its images is felt."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()
"""Of each thread: whether it does pieces of work, what stops the one it does, how often it is in one_thread, and on
how many threads its compiled layers compute."""

_at_work: set[int] = set()
"""Threads that do a piece of work and do not wait for another's."""


class Stopped(Exception):
    """Nobody waits for this piece of work any more."""


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """Within, this piece of work only waits for what others do, who may use its core."""
    me = threading.get_ident()
    works = me in _at_work
    _at_work.discard(me)
    try:
        yield
    finally:
        if works:
            _at_work.add(me)


@contextmanager
def one_thread() -> Iterator[None]:
    """This thread's operations compute on one thread within; afterwards on as many as before. May be nested."""
    depth, before = getattr(_here, "depth", 0), torch.get_num_threads()
    if depth == 0:
        torch.set_num_threads(1)
    _here.depth = depth + 1
    try:
        yield
    finally:
        _here.depth = depth
        if depth == 0:
            torch.set_num_threads(before)


def go_on() -> None:
    """Called now and then by long pieces of work, which end here when another piece failed or a user stopped all.

    Raises:
        Stopped: nobody waits for the piece.
    """
    stop = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


@dataclass(frozen=True)
class Workers:
    """Threads that do pieces of work side by side; torch and the compiled layers let go of the interpreter.

    Args:
        number: of threads; with one all is done in the thread that asks.
    """

    number: int = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of each item, in order, no more than twice the number of workers ahead.

        A piece that asks for workers itself has its parts done one after another. What one raises is raised here, and
        the others end where they call :func:`go_on`.
        """
        if self.number == 1 or getattr(_here, "works", False):
            for item in items:
                with one_thread():
                    result = function(item)
                yield result
            return
        pool, waiting, stop = _pool(self.number), deque[Future[Result]](), threading.Event()

        def piece(item: Item) -> Result:
            _here.stop = stop
            go_on()
            _at_work.add(threading.get_ident())
            try:
                return function(item)
            finally:
                _at_work.discard(threading.get_ident())

        try:
            for item in items:
                waiting.append(pool.submit(piece, item))
                if len(waiting) > 2 * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # of a failure nobody waits for the rest
            stop.set()
            for future in waiting:
                future.cancel()


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "medistill", _begin)


_forked = False
"""Whether this process is a fork, in which the threads of layers that another process had are missing."""


def _begin_again() -> None:
    global _forked
    _forked = True
    _at_work.clear()


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_begin_again)


def _begin() -> None:
    """A new thread: torch's operations ask each thread for its own number of threads."""
    _here.works = True
    torch.set_num_threads(1)


def layer_threads() -> int:
    """Threads on which a compiled layer computes that this thread asks for; on any number it gives the same."""
    return int(getattr(_here, "layers", 0)) or torch.get_num_threads()


@contextmanager
def layers_on(threads: int) -> Iterator[None]:
    """Compiled layers that this thread asks for compute on so many threads within."""
    before = getattr(_here, "layers", 0)
    _here.layers = threads
    try:
        yield
    finally:
        _here.layers = before


class SpareCores:
    """Lends the compiled layers of a long piece of work the cores that no other piece uses, while that pays.

    The last of several trainings, or the only one, would leave cores idle. Threads within a layer shorten its steps
    where nothing else runs, and hold them up where another program has the core, so steps are timed: unless they take
    at most ``WORTH`` of what they take on one thread, one thread goes on alone, for longer after each failure.

    Args:
        cores: at most; those that this command may use if not given.

    Example:
        >>> spare = SpareCores()
        >>> with spare.step():
        ...     pass  # one step of many that are alike
    """

    MOST = 4
    """Threads of a layer: those of a batch of 32 small images are not worth more."""

    WORTH, ALONE, LONGEST = 0.9, 5, 256
    """Share of the time alone that a step may take, steps that say what this is, and the most steps without help."""

    def __init__(self, cores: int | None = None) -> None:
        self.cores = 1 if _forked else cores or usable_cores()
        self.alone: deque[float] = deque(maxlen=self.ALONE)
        self.rest, self.pause = self.ALONE, 1 + self.ALONE

    @property
    def threads(self) -> int:
        """On how many the next step computes its layers."""
        if self.pause > 0:
            return 1
        others = len(_at_work - {threading.get_ident()})
        return min(self.MOST, max(1, self.cores // (1 + others)))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one of many steps that are alike."""
        if self.cores == 1 or layer_threads() > 1:  # it may have been decided outside
            yield
            return
        threads, begun = self.threads, time.perf_counter()
        with layers_on(threads):
            yield
        seconds = time.perf_counter() - begun
        if threads == 1:
            self.pause -= 1
            self.alone.append(seconds)
        elif seconds > self.WORTH * median(self.alone):
            self.pause, self.rest = self.rest, min(2 * self.rest, self.LONGEST)
        else:
            self.rest = max(self.ALONE, self.rest - 1)


class StepSharing:
    """Decides how workers share each of many steps that are alike: pieces side by side, or one after another with
    layers that are computed on several threads. Results are the same to the byte.

    Pieces side by side take turns at the interpreter, which is felt where they are small; threads within a layer wait
    for one another, which is felt where another program has a core. So steps are timed: a few of either way first,
    then by the faster, and now and then, ever more seldom, some by the other.

    Args:
        workers: whose pieces; with one nothing is decided.
        within: the way of the first steps: whether threads within layers share them.

    Example:
        >>> sharing = StepSharing(Workers(2))
        >>> with sharing.step():
        ...     pass  # Workers(2).map(...)
    """

    TRIED, WORTH, SLOWER, REST, LONGEST = 3, 0.95, 1.25, 30, 480
    """Steps that say how fast a way is, share of the other's time that threads in layers may take, times their own
    at which they are doubted; steps after which the other way is tried again, at first and at most."""

    def __init__(self, workers: Workers, within: bool = False) -> None:
        self.threads = min(workers.number, SpareCores.MOST)
        self.seconds: dict[bool, deque[float]] = {way: deque(maxlen=self.TRIED) for way in (False, True)}
        self.within, self.trying, self.left, self.rest = within, False, self.TRIED, self.REST
        self.expected = float("inf")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one of many steps that are alike."""
        if self.threads == 1 or getattr(_here, "works", False) or layer_threads() > 1:  # decided outside
            yield
            return
        begun = time.perf_counter()
        if self.within:
            _here.works = True
            try:
                with layers_on(self.threads):
                    yield
            finally:
                _here.works = False
        else:
            yield
        self._tell(time.perf_counter() - begun)

    def _tell(self, seconds: float) -> None:
        own, other = self.seconds[self.within], self.seconds[not self.within]
        own.append(seconds)
        self.left -= 1
        if self.trying:
            over = seconds > 2 * median(other)
        else:
            over = self.within and median(own) > self.SLOWER * self.expected
        if self.left > 0 and not over:
            return
        if self.trying:
            before = not self.within
            self.within = median(self.seconds[True]) < self.WORTH * median(self.seconds[False])
            self.rest = min(2 * self.rest, self.LONGEST) if self.within == before else self.REST
            self.trying, self.left, self.expected = False, self.rest, median(self.seconds[self.within])
        else:
            self.within, self.trying, self.left = not self.within, True, self.TRIED
            self.seconds[self.within].clear()


def parts(count: int, size: int = PIECE) -> list[slice]:
    """``count`` things in parts of at most ``size``, of sizes that differ by one at most.

    As few parts as can be, but an even number of several, lest one of two workers wait for the other's last.

    >>> parts(70, 32)
    [slice(0, 18, None), slice(18, 36, None), slice(36, 53, None), slice(53, 70, None)]
    """
    number = max(1, -(-count // size))
    number += 1 < number < count and number % 2
    edges = [0]
    for part in range(number):
        edges.append(edges[-1] + count // number + (part < count % number))
    return [slice(a, b) for a, b in pairwise(edges)]


def summed(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The sum of each of several tensors over results, in their order."""
    total: list[Tensor] = []
    for result in results:
        total = [a + b for a, b in zip(total, result, strict=True)] if total else list(result)
    return total
