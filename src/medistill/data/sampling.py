"""Drawing images by strata: the one place that says how many of which group are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medistill.keys import Key

Rows = npt.NDArray[np.intp]


def draw_by_stratum(
    membership: npt.NDArray[np.bool_],
    counts: Sequence[int],
    key: Callable[[int], Key],
    repeat: bool = False,
) -> list[Rows]:
    """Random images of each stratum without replacement, at most as many as there are.

    Where strata overlap no image is drawn for two of them; the rarest strata are served first, lest nothing be left.

    Args:
        membership: (n, strata).
        counts: images wanted of each stratum.
        key: the randomness of each stratum.
        repeat: a stratum that has too few is gone through again and again until there are enough.

    Returns:
        Row numbers for each stratum, in the order in which they were drawn.
    """
    taken = np.zeros(len(membership), dtype=bool)
    rows: dict[int, Rows] = {}
    for stratum in serving_order(membership):
        count = counts[stratum]
        members = np.flatnonzero(membership[:, stratum] & ~taken)
        draw = key(stratum).numpy()
        passes = -(-count // len(members)) if repeat and count and len(members) else 1
        rows[stratum] = np.concatenate([draw.permutation(members) for _ in range(passes)])[:count]
        if not repeat:
            taken[rows[stratum]] = True
    return [rows[stratum] for stratum in range(membership.shape[1])]


def serving_order(membership: npt.NDArray[np.bool_]) -> list[int]:
    """Strata in the order in which they are served: as they come where they do not overlap, else the rarest first."""
    strata = list(range(membership.shape[1]))
    if (membership.sum(axis=1) <= 1).all():
        return strata
    sizes = membership.sum(axis=0)
    return sorted(strata, key=lambda stratum: (sizes[stratum], stratum))


def balanced_counts(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` images of every stratum that has any."""
    return [count if size else 0 for size in sizes]
