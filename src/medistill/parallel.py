"""Independent pieces of work side by side, each on one thread.

A parallel region within an operation waits for all its threads, thousands of times a second; where another program
has one of the cores, all wait for it. Pieces that need nothing of one another wait once, when they are put together.
How the work is divided depends on the work alone, so results have the same bytes with any number of workers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

PIECE = 32
"""Images that are worth a piece of work; in smaller pieces what a call costs beside its images is felt."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()
_borrowed = threading.Lock()
_depth = 0
_before = 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations compute on one thread within; afterwards on as many as before. May be nested, and in threads."""
    global _depth, _before
    with _borrowed:
        if _depth == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _depth += 1
    try:
        yield
    finally:
        with _borrowed:
            _depth -= 1
            if _depth == 0:
                torch.set_num_threads(_before)


@dataclass(frozen=True)
class Workers:
    """Threads that do pieces of work side by side; torch and the compiled layers let go of the interpreter.

    Args:
        number: of threads; with one all is done in the thread that asks.
    """

    number: int = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of each item, in order, no more than twice the number of workers ahead.

        A piece that asks for workers itself has its parts done one after another. What one raises is raised here.
        """
        if self.number == 1 or getattr(_here, "works", False):
            yield from map(function, items)
            return
        pool, waiting = _pool(self.number), deque[Future[Result]]()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # of a failure nobody waits for the rest
            for future in waiting:
                future.cancel()


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "medistill", _begin)


def _begin() -> None:
    """A new thread: torch's operations ask each thread for its own number of threads."""
    _here.works = True
    torch.set_num_threads(1)


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
