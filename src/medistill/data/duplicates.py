"""Images that are there twice: within a split, across splits, exactly or nearly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from medistill.aliases import RawImages, Targets
from medistill.data.arrays import blocks
from medistill.data.dataset import SPLITS, Dataset
from medistill.data.issue import NAMED, Issue, Rows

EXACT, NEAR, COPIES, CONTRADICTORY, PATIENTS = IN_PAIRS = (
    "exact duplicates", "near duplicates", "copies", "contradictory labels", "several patients",
)  # fmt: skip
"""Kinds of problem whose rows are pairs: images, each before the one that it is a copy of."""

Place = tuple[str, int]
"""A split and a row of it."""

NEAR_DUPLICATE = 0.995
"""Pixel correlation above which two images count as near-duplicates."""

PROJECTED = 256
"""Numbers to which larger images are projected at random to find families: of two that correlate by 0.995, within
0.0006 (standard deviation, (1 - ρ²)/√256).
"""


def duplicates(dataset: Dataset) -> Iterator[Issue]:
    """Copies within splits, and images that two splits have."""
    # Channels last, as files have them, so that large arrays are not copied.
    flat = {s: np.moveaxis(part.images, 1, -1).reshape(len(part), -1) for s, part in dataset.splits.items()}
    digests = {s: _row_digests(rows) for s, rows in flat.items()}
    pairs: list[tuple[Place, Place]] = []
    for name, own in digests.items():
        again = _again(own)
        pairs += [((name, row), (name, other)) for row, other in again]
        yield from _copies(name, again, dataset.splits[name].targets)
    for first, second in pairs_of_splits(dataset.splits):
        seen = {digest: row for row, digest in reversed(list(enumerate(digests[first])))}
        exact = np.array([seen.get(digest, -1) for digest in digests[second]])
        near = np.where(exact < 0, _near_duplicates(flat[first], flat[second]), -1)
        for kind, of in ((EXACT, exact), (NEAR, near)):
            rows = np.flatnonzero(of >= 0).tolist()
            pairs += [((second, row), (first, int(of[row]))) for row in rows]
            if rows:
                yield Issue(
                    "warning",
                    kind,
                    f"{len(rows)} of {len(of)} {second} images are in {first} too, "
                    f"for instance {second}_images[{rows[0]}]",
                    f"remove them from {first}; results will flatter",
                    _in_pairs((second, first), [(row, int(of[row])) for row in rows]),
                )
    yield from _several_patients(dataset, pairs)


def _several_patients(dataset: Dataset, pairs: Sequence[tuple[Place, Place]]) -> Iterator[Issue]:
    """Copies that are said to be of different patients: one of them may have two numbers."""
    if any(part.patients is None for part in dataset.splits.values()):
        return

    def patient(place: Place) -> str:
        names = dataset.splits[place[0]].patients
        assert names is not None
        return str(names[place[1]])

    differ = [pair for pair in pairs if patient(pair[0]) != patient(pair[1])]
    if differ:
        (split, row), (other_split, other) = differ[0]
        yield Issue(
            "warning",
            PATIENTS,
            f"{len(differ)} images are those of another patient, or nearly, for instance {split}_images[{row}] and "
            f"{other_split}_images[{other}]",
            "the same patient may have two numbers, or none; give each one, or parts of a patient are tested on",
            tuple(place for pair in differ[: NAMED // 2] for place in pair),
        )


def _again(digests: list[bytes]) -> list[tuple[int, int]]:
    """Rows that repeat another one, each with the first that is equal."""
    first: dict[bytes, int] = {}
    again = [row for row, digest in enumerate(digests) if first.setdefault(digest, row) != row]
    return [(row, first[digests[row]]) for row in again]


def _copies(name: str, pairs: list[tuple[int, int]], targets: Targets) -> Iterator[Issue]:
    """Images that a split has several times, and those of them whose labels differ."""
    differ = [(row, other) for row, other in pairs if (targets[row] != targets[other]).any()]
    if pairs:
        yield Issue(
            "warning",
            COPIES,
            f"{len(pairs)} of {len(targets)} {name} images are copies of others of {name}, for instance "
            f"{name}_images[{pairs[0][0]}] of [{pairs[0][1]}]",
            "remove them; they count more than others",
            _in_pairs((name, name), pairs),
        )
    if differ:
        yield Issue(
            "warning",
            CONTRADICTORY,
            f"{len(differ)} {name} images are copies of others with another label, for instance "
            f"{name}_images[{differ[0][0]}] of [{differ[0][1]}]",
            "find out which label is right",
            _in_pairs((name, name), differ),
        )


def _in_pairs(splits: tuple[str, str], pairs: list[tuple[int, int]]) -> Rows:
    """Images and those that they are copies of, one after the other."""
    return tuple((split, row) for pair in pairs[: NAMED // 2] for split, row in zip(splits, pair, strict=True))


def pairs_of_splits(names: Iterable[str]) -> list[tuple[str, str]]:
    """Those of the splits that there are, each pair once."""
    present = [s for s in SPLITS if s in names]
    return [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]


def _row_digests(flat: npt.NDArray[np.generic]) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for _, block in blocks(flat) for row in block]


def unit_rows(flat: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Rows with zero mean and unit length, so that products are correlations."""
    rows = flat.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 1e-6), dtype=np.float32)


def _near_duplicates(
    first: npt.NDArray[np.generic], second: npt.NDArray[np.generic], block: int = 2048
) -> npt.NDArray[np.int64]:
    """Of each row of ``second`` one of ``first`` with which it correlates above :data:`NEAR_DUPLICATE`, else -1.

    Small problems are computed outright. In large ones a random projection to 64 numbers
    (fixed seed) sorts out the bulk: a correlation of 0.995 keeps within about 0.00125
    (standard deviation, (1 − ρ²)/√64) there, so only pairs above 0.985 are compared in full.
    """
    if first.shape[1] <= 1024 and len(first) * len(second) <= 10**9:
        a, b = unit_rows(first), unit_rows(second)
        found = np.full(len(b), -1)
        for i in range(0, len(b), block):
            for j in range(0, len(a), block):
                correlation = b[i : i + block] @ a[j : j + block].T
                high = correlation.max(axis=1) > NEAR_DUPLICATE
                found[i : i + block][high] = j + correlation[high].argmax(axis=1)
        return found
    mixer = np.random.default_rng(0).standard_normal((first.shape[1], 64), dtype=np.float32)
    low_a, low_b = (_projected(x, mixer) for x in (first, second))
    found = np.full(len(second), -1)
    for i in range(0, len(low_b), block):
        for j in range(0, len(low_a), block):
            rows, columns = np.nonzero(low_b[i : i + block] @ low_a[j : j + block].T > 0.985)
            for row in np.unique(rows[found[i + rows] < 0]):
                candidates = j + columns[rows == row]
                normalised = unit_rows(second[i + row : i + row + 1])[0]
                for k in range(0, len(candidates), 256):
                    correlation = unit_rows(first[candidates[k : k + 256]]) @ normalised
                    if correlation.max() > NEAR_DUPLICATE:
                        found[i + row] = candidates[k + correlation.argmax()]
                        break
    return found


def families(images: RawImages, largest: int, block: int = 2048) -> npt.NDArray[np.int64]:
    """Of each image the first of those that are the same, or nearly, or are so through others (single linkage).

    Where so many are alike that a family has more than ``largest`` images, as aligned slices of one organ may be,
    being alike does not tell copies from others: of these only equal ones are together.

    Args:
        images: (n, c, *spatial).
        largest: images of a family, at most.
        block: images that are compared at once.
    """
    flat = np.moveaxis(images, 1, -1).reshape(len(images), -1)
    first: dict[bytes, int] = {}
    equal = np.array([first.setdefault(digest, row) for row, digest in enumerate(_row_digests(flat))])
    if flat.shape[1] > PROJECTED:
        mixer = np.random.default_rng(0).standard_normal((flat.shape[1], PROJECTED), dtype=np.float32)
        rows = _projected(flat, mixer)
    else:
        rows = unit_rows(flat)
    family = equal.copy()
    for i in range(0, len(rows), block):
        for j in range(0, i + 1, block):
            own, other = np.nonzero(rows[i : i + block] @ rows[j : j + block].T > NEAR_DUPLICATE)
            family = _merged(family, family[i + own], family[j + other])
    sizes = np.bincount(family, minlength=len(family))
    return np.where(sizes[family] > largest, equal, family)


def _merged(
    family: npt.NDArray[np.int64], one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Labels after those of pairs became one, the least."""
    if not (one != other).any():
        return family
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(family)
    _, part = connected_components(coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(n, n)))
    least = np.full(part.max() + 1, n)
    np.minimum.at(least, part, np.arange(n))
    return np.asarray(least[part][family], dtype=np.int64)


def _projected(flat: npt.NDArray[np.generic], mixer: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return unit_rows(np.concatenate([unit_rows(block) @ mixer for _, block in blocks(flat)]))
