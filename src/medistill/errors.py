"""One tree of errors. Each is one line: what was found, where, what is allowed, what to do next.

The command line prints the line and leaves with status 2; anything that is not a
:class:`MedistillError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MedistillError(Exception):
    """Bad input or circumstances, told in one line.

    Args:
        found: what was found, in words.
        where: file, key or class it concerns.
        allowed: what would have been accepted.
        remedy: what to do next.
    """

    def __init__(
        self, what: str, *, where: object = None, allowed: str | None = None, remedy: str | None = None
    ) -> None:
        parts = [f"{where}: {what}" if where is not None else what]
        if allowed:
            parts.append(f"allowed: {allowed}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class DataError(MedistillError):
    """The images, labels or files given cannot be used."""


class ConfigError(MedistillError):
    """A setting is unknown, out of range or contradicts another."""


class PackageError(MedistillError):
    """A package is damaged, altered, incomplete or unsafe to open."""


class OutputError(MedistillError):
    """The result cannot be written where it was asked for."""


@contextmanager
def concerning(what: object) -> Iterator[None]:
    """Say of an error which part of a larger whole it is about: a file, an entry of it."""
    try:
        yield
    except MedistillError as problem:
        raise type(problem)(f"{what}: {problem}") from problem


def nearest(name: str, options: Iterable[str]) -> str:
    """Name the nearest spelling among ``options``, or list them all.

    >>> nearest("herdng", ["dm", "herding"])
    "did you mean 'herding'?"
    """
    choices = sorted(options)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + (", ".join(choices) or "none")
