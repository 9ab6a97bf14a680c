"""How much memory a distillation needs, and how to stay under a bound."""

from __future__ import annotations

import math
import re

from medistill.data.arrays import BLOCK, LARGE
from medistill.data.preprocess import Prepared
from medistill.distil.method import Method
from medistill.distil.problem import Problem
from medistill.errors import ConfigError

PROGRAM_MB = 300.0
"""Megabytes (10⁶ bytes) of the interpreter, torch and what it keeps ready, before any image."""

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


def images_mb(prepared: Prepared, problem: Problem) -> float:
    """Megabytes of all images in memory: as read, as prepared, and those for training sorted by class.

    Of arrays that lie in files only a block is in memory at a time.
    """
    held = [s.images for s in prepared.dataset.splits.values()] + [p.pixels for p in prepared.parts.values()]
    distinct = {array.ctypes.data: array.nbytes for array in [*held, problem.pixels]}
    return sum(size if size < LARGE else BLOCK for size in distinct.values()) / 1e6


def estimate_mb(method: Method, problem: Problem, classes: int, held_mb: float = 0.0) -> float:
    """Peak megabytes with that many classes in one backward pass, beside ``held_mb`` of images."""
    return PROGRAM_MB + held_mb + method.memory_mb(problem, classes)


def classes_within(method: Method, problem: Problem, limit_mb: float, held_mb: float = 0.0) -> int:
    """The most classes in one backward pass that stay under the limit.

    Raises:
        ConfigError: not even the least that the method can do stays under it.
    """
    least = problem.classes if method.info.joint else 1
    for classes in range(problem.classes, least - 1, -1):
        if estimate_mb(method, problem, classes, held_mb) <= limit_mb:
            return classes
    needed = math.ceil(estimate_mb(method, problem, least, held_mb))
    raise ConfigError(
        f"{limit_mb:g} MB",
        where="--memory-limit",
        allowed=f"{needed} MB or more for {method.info.name} here",
        remedy="ask for fewer images, a smaller --size, or fewer method.filters",
    )
