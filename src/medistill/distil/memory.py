"""How much memory a distillation needs, and how to stay under a bound."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from medistill.distil.method import Method
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import CHUNK
from medistill.errors import ConfigError
from medistill.parallel import Workers

PROGRAM_MB = 270.0
"""Megabytes (10⁶ bytes) of the interpreter, torch and what it keeps ready, before any image."""

USUAL_MB = 4000.0
"""What is kept to where nobody states a limit."""

SPARE = 1.1
"""Times the least, where even that is above :data:`USUAL_MB`: one image at a time takes long and saves little."""

MARGIN = 1.15
"""Times the estimate that must fit under a limit: measured peaks lay up to a tenth above estimates."""

Way = TypeVar("Way", bound=tuple[Any, ...])

UNITS = {"": 1.0, "MB": 1.0, "GB": 1000.0}


def parse_limit(text: str) -> float:
    """Megabytes from "3GB", "500MB" or "500".

    Raises:
        ConfigError: something else.

    >>> parse_limit("1.5 GB")
    1500.0
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(MB|GB|)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"'{text}'", where="--memory-limit", allowed="a number with MB or GB, for instance 3GB")
    return float(match[1]) * UNITS[match[2].upper()]


def learning_mb(method: Method, problem: DistillationProblem, strata: int, held_mb: float = 0.0) -> float:
    """Peak megabytes while images are learned, with that many strata in a piece of work, beside ``held_mb``."""
    return PROGRAM_MB + held_mb + method.memory_mb(problem, strata)


@dataclass(frozen=True)
class WorkPlan:
    """How a distillation goes about its work.

    Args:
        problem: what is learned, with the number of workers and of images that go through a network at once.
        strata: in one piece of work.
        max_workers: teachers trained at once, at most.
        needed_mb: estimated peak of memory, in megabytes.
    """

    problem: DistillationProblem
    strata: int
    max_workers: int
    needed_mb: float


def planned(
    method: Method,
    problem: DistillationProblem,
    images: float,
    limit_mb: float | None,
    teaching: Sequence[tuple[int, float]] = ((1, 0.0),),
) -> WorkPlan:
    """The way that stays under a limit and costs least: with all workers, else with fewer, else by classes, else by
    images of a class.

    Going by images computes twice what becomes of them in the network.
    Without a limit a CPU's memory is kept under :data:`USUAL_MB` where that can be done, and a GPU gets everything
    at once.

    Args:
        method, problem: what is learned.
        images: megabytes of all images in memory.
        limit_mb: the limit; None where nobody stated one.
        teaching: ways to train teachers, the one that costs least first: networks side by side, and the megabytes
            that they take beside the program and the images.

    Raises:
        ConfigError: no way stays under the limit.
    """
    usual = USUAL_MB if problem.device.type == "cpu" else math.inf
    limit = usual if limit_mb is None else limit_mb / MARGIN
    spare = SPARE if limit_mb is None else 1.0
    parted, strata, needed = _first_within(limit, list(_learning(method, problem, images)), spare)
    max_workers, also = _first_within(limit, [(n, PROGRAM_MB + images + mb) for n, mb in teaching], spare)
    needed = max(needed, also)
    if limit_mb is not None and needed > limit:
        raise ConfigError(
            f"{limit_mb:g} MB",
            where="--memory-limit",
            allowed=f"{math.ceil(MARGIN * needed)} MB or more for {method.info.name} here",
            remedy="ask for fewer images, a smaller --size, fewer method.filters, or a smaller method.real_batch",
        )
    return WorkPlan(parted, strata, max_workers, needed)


def _first_within(limit: float, ways: Sequence[Way], spare: float) -> Way:
    """The first way whose megabytes, its last number, stay under the limit; where none does, the first that needs
    hardly more than the least.
    """
    least = min(way[-1] for way in ways)
    enough = limit if least <= limit else spare * least
    return next(way for way in ways if way[-1] <= enough)


def _learning(
    method: Method, problem: DistillationProblem, held_mb: float
) -> Iterator[tuple[DistillationProblem, int, float]]:
    """Ways to learn the images, the one that costs least first, with their megabytes."""
    coupled, on_cpu = method.info.couples_classes, problem.device.type == "cpu"
    most = problem.strata if coupled else method.strata_per_piece(problem)
    least = problem.strata if coupled else 1
    for workers in range(problem.workers.number if on_cpu else 1, 0, -1):
        fewer = problem.worked_by(Workers(workers))
        yield fewer, most, learning_mb(method, fewer, most, held_mb)
    alone = problem.worked_by(Workers())
    for strata in range(most - 1, least - 1, -1):
        yield alone, strata, learning_mb(method, alone, strata, held_mb)
    images = 1 << (max(sum(problem.synthetic_per_stratum), CHUNK) - 1).bit_length()
    while images > 1:
        images //= 2
        parted = alone.in_micro_batches(images)
        yield parted, least, learning_mb(method, parted, least, held_mb)
