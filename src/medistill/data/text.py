"""Text that a scanner or a person wrote into pixels: names, numbers, dates.

Letters of a line are shapes of one height, on one line, close together and separate from one another; hardly anything
in a body is. So bright and dark shapes are sought at several thresholds, and rows of at least four of them. It misses
letters that touch, are smaller than five pixels, or hardly differ from what is behind them: that it finds none does
not show that there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

THRESHOLDS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Of intensities from an image's least (0) to its greatest (1)."""

FEWEST = 4
"""Letters of a line."""

LOWEST = 5
"""Pixels of the smallest letter's height."""

GAP = 1.2
"""Greatest distance of two letters, as a multiple of their height."""

LARGEST_SIDE = 700
"""Pixels of a side from twice which on every other pixel is looked at."""

SMALLEST_SIDE = 32
"""Pixels of a side below which no text can be read."""


class TextLine(NamedTuple):
    """A row of shapes like letters: their box in pixels, and how many there are."""

    top: int
    left: int
    bottom: int
    right: int
    letters: int


class _Shape(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def text_lines(image: npt.NDArray[np.generic]) -> list[TextLine]:
    """Rows of shapes like letters in an image (height, width) of any numbers; none in one too small to be read.

    >>> text_lines(np.zeros((64, 64)))
    []
    """
    from scipy import ndimage

    x = image.astype(np.float32)
    low, high = x.min(initial=np.inf), x.max(initial=-np.inf)
    if min(x.shape) < SMALLEST_SIDE or not low < high:
        return []
    x = (x - low) / (high - low)
    found: list[TextLine] = []
    for side in (x, 1 - x):
        for threshold in THRESHOLDS:
            shapes, number = ndimage.label(side > threshold, structure=np.ones((3, 3)))
            if number >= FEWEST:
                areas = np.bincount(shapes.ravel(), minlength=number + 1)
                boxes = ndimage.find_objects(shapes)
                found += _lines(_letters(boxes, areas[1:], min(x.shape) // 6))
    return found


def slices(image: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.generic]]:
    """The pictures (c, height, width) of an image, or of a volume (c, depth, height, width)."""
    yield from [image] if image.ndim == 3 else np.moveaxis(image, 1, 0)


def shows_text(image: npt.NDArray[np.generic]) -> bool:
    """Whether an image (c, height, width) has a row of shapes like letters in its brightest channel."""
    step = max(1, min(image.shape[1:]) // LARGEST_SIDE)
    return bool(text_lines(image.max(axis=0)[::step, ::step]))


def _letters(boxes: list[tuple[slice, slice]], areas: npt.NDArray[np.int64], highest: int) -> list[_Shape]:
    """Those shapes that a letter could have, from left to right."""
    letters = []
    for (rows, columns), area in zip(boxes, areas, strict=True):
        shape = _Shape(rows.start, columns.start, rows.stop, columns.stop)
        width = shape.right - shape.left
        if not (LOWEST <= shape.height <= highest and 0.12 * shape.height <= width <= 1.6 * shape.height):
            continue
        is_block = area > 0.92 * shape.height * width and width > 0.35 * shape.height
        if not is_block:
            letters.append(shape)
    return sorted(letters, key=lambda shape: shape.left)


def _lines(letters: list[_Shape]) -> list[TextLine]:
    """Rows of letters whose tops and feet are level, each close to the one before."""
    found, used = [], set[int]()
    for start, first in enumerate(letters):
        if start in used:
            continue
        line, level = [start], max(1.0, 0.12 * first.height)
        for index in range(start + 1, len(letters)):
            last, shape = letters[line[-1]], letters[index]
            gap = shape.left - last.right
            if gap > 3 * first.height:
                break
            is_level = abs(shape.top - first.top) <= level and abs(shape.bottom - first.bottom) <= level
            if is_level and -0.2 * first.height <= gap <= GAP * first.height:
                line.append(index)
        if len(line) >= FEWEST:
            used.update(line)
            own = [letters[index] for index in line]
            found.append(
                TextLine(min(s.top for s in own), own[0].left, max(s.bottom for s in own), own[-1].right, len(own))
            )
    return found
