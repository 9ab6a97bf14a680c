"""Many files are read side by side: a few by threads, many by processes, as decoding is mostly Python's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medistill.data.dicom import NoPicture
from medistill.data.pictures import ReadingOptions, SourceImage, read_picture
from medistill.data.text import shows_text
from medistill.errors import DataError
from medistill.progress import Progress, reading_shown

Result = TypeVar("Result")

PROCESSES_FROM = 200
"""Files from which on processes read them; to begin they need what reading so many takes."""

BATCH = 32
"""Files that a process is given at a time."""

LOOKED_AT = 60
"""Files that are looked at for letters, at the size that they have, at most, beside those that often show some."""


@dataclass(frozen=True)
class ReadFile:
    """What became of a file: its picture, or the reason why it has none.

    Args:
        picture: what it shows.
        skipped: kind of DICOM object that holds no picture.
        reason: why it cannot be read.
    """

    picture: SourceImage | None = None
    skipped: str = ""
    reason: str = ""


def read_pictures(paths: Sequence[Path], how: ReadingOptions, cores: int) -> Iterator[ReadFile]:
    """What became of each file, in order.

    Raises:
        MemoryError: a file needs more than there is.
        DataError: the system ended a process that was reading.
    """
    every = max(1, -(-len(paths) // LOOKED_AT))
    work = [(path, how, number % every == 0) for number, path in enumerate(paths)]
    return _each(read_one, work, cores, f"reading {len(paths):,} files")


def headers(paths: Sequence[Path], of: Callable[[Path], Result], cores: int) -> Iterator[Result]:
    """What a function finds in each file's header, in order."""
    return _each(of, [(path,) for path in paths], cores, f"reading {len(paths):,} headers")


def _each(
    function: Callable[..., Result], work: Sequence[tuple[Any, ...]], cores: int, label: str
) -> Iterator[Result]:
    many = len(work) >= PROCESSES_FROM
    with Progress(label, len(work), enabled=many and reading_shown.get()) as progress:
        for done in (_by_processes if many and cores > 1 else _by_threads)(function, work, cores):
            progress.advance()
            yield done


def _by_threads(function: Callable[..., Result], work: Sequence[tuple[Any, ...]], cores: int) -> Iterator[Result]:
    from medistill.parallel import Workers

    yield from Workers(cores).map(lambda one: function(*one), work)


def _by_processes(function: Callable[..., Result], work: Sequence[tuple[Any, ...]], cores: int) -> Iterator[Result]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    parts = [work[start : start + BATCH] for start in range(0, len(work), BATCH)]
    pool = Parallel(cores, return_as="generator", batch_size=1, pre_dispatch="3*n_jobs")
    try:
        for results in pool(delayed(_together)(function, part) for part in parts):
            yield from results
    except BrokenProcessPool as problem:
        raise DataError(
            "ended a process that was reading files", where="the system", allowed="files that fit into memory",
            remedy="--threads 1 reads one file at a time",
        ) from problem  # fmt: skip


def _together(function: Callable[..., Result], work: Sequence[tuple[Any, ...]]) -> list[Result]:
    """Several at once, as handing work to a process takes as long as a small file."""
    return [function(*one) for one in work]


def read_one(path: Path, how: ReadingOptions, look_for_text: bool) -> ReadFile:
    """What became of one file."""
    try:
        picture = read_picture(path, how)
        look = picture.text is None and (look_for_text or picture.often_text)
        if look and picture.pixels.ndim == 3:
            picture = replace(picture, text=shows_text(np.moveaxis(picture.pixels, -1, 0)))
        return ReadFile(picture)
    except MemoryError:
        raise
    except NoPicture as problem:
        return ReadFile(skipped=str(problem))
    except Exception as problem:  # decoders raise many kinds on damaged files
        return ReadFile(reason=_in_words(path, problem))


def _in_words(file: Path, problem: Exception) -> str:
    if isinstance(problem, DataError):
        return str(problem)
    if file.stat().st_size == 0:
        return "is empty (0 bytes)"
    return f"cannot be read ({problem})".replace(f" {str(file)!r}", "")
