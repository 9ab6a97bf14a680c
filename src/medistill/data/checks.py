"""What can be wrong with a data set, listed all at once before hours of compute are spent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Targets
from medistill.data.arrays import blocks
from medistill.data.dataset import SPLITS, Dataset
from medistill.data.image import shape_in_words
from medistill.data.intensity import RARE, extremes, has_outliers, usual
from medistill.data.text import shows_text, slices
from medistill.errors import DataError

Level = Literal["blocking", "warning"]

GREATEST_INTENSITY = 1e12
"""What a package can record of a window."""

NEAR_DUPLICATE = 0.995
"""Pixel correlation above which two images count as near-duplicates."""

SCALES_APART = 8
"""Times as wide as another split's a split's usual intensities may not be."""

FEW_TESTED = 30
"""Test images below which a verdict would be chance."""

READ = 1000
"""Images of a split that are looked at for text, at most."""

LONGEST_NAME = 200
"""Characters of a class name."""


@dataclass(frozen=True)
class Issue:
    """One thing found.

    Args:
        level: "blocking" stops every command that trains; "warning" is told and recorded.
        kind: short name, the same in code, JSON and docs.
        found: what was found and where.
        remedy: what to do about it.
    """

    level: Level
    kind: str
    found: str
    remedy: str

    def as_json(self) -> Json:
        return asdict(self)


def check(dataset: Dataset, ipc: int | None = None, thorough: bool = True) -> list[Issue]:
    """List every problem of a data set, blocking ones first.

    Args:
        dataset: the data.
        ipc: images per class, grade or finding that will be asked for, if known.
        thorough: also look for duplicates across splits, which compares all images, and for text in pixels.
    """
    issues = [*_labels(dataset), *_pixels(dataset), *_intensities(dataset), *_splits(dataset, ipc)]
    if thorough and not any(issue.level == "blocking" for issue in issues):
        issues += [*_duplicates(dataset), *_text(dataset)]
    return sorted(issues, key=lambda issue: issue.level != "blocking")


def require_usable(dataset: Dataset, absent_classes: bool = False, private: bool = False) -> list[Issue]:
    """The warnings of a data set without blocking problems.

    Args:
        dataset: the data.
        absent_classes: classes without images are no obstacle (another site may lack some).
        private: nor are classes without, or with all images: whether a command succeeds must not hang on one person.

    Raises:
        DataError: there are blocking problems; the line names the first and counts the rest.
    """
    issues = check(dataset, thorough=False)
    accepted = {"empty class"} if absent_classes or private else set()
    accepted |= {"full class", "scales"} if private else set()
    issues = [issue for issue in issues if issue.kind not in accepted]
    blocking = [issue for issue in issues if issue.level == "blocking"]
    if blocking:
        more = f" ({len(blocking) - 1} more: run medistill check)" if blocking[1:] else ""
        raise DataError(blocking[0].found, where=dataset.description.name, remedy=blocking[0].remedy + more)
    return issues


def _labels(dataset: Dataset) -> Iterator[Issue]:
    task = dataset.task
    names, noun = task.class_names, task.noun
    wrong_names = [
        n for n in names if not n.strip() or len(n) > LONGEST_NAME or names.count(n) > 1 or not n.isprintable()
    ]
    if wrong_names:
        yield Issue(
            "blocking",
            "class names",
            f"{wrong_names[0][:40]!r} is empty, too long, unprintable or given twice",
            f"give every {noun} its own name of 1 to {LONGEST_NAME} characters",
        )
    if task.exclusive and len(names) < 2:
        yield Issue("blocking", "one class", f"only {len(names)} {noun}", f"give at least two {task.plural}")
    present = {split: part.targets.sum(axis=0, dtype=np.int64) for split, part in dataset.splits.items()}
    empty = np.flatnonzero(present["train"] == 0).tolist()
    if empty:
        listed = ", ".join(f"{label} ('{names[label]}')" for label in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        highest = f" (the highest label is {len(names) - 1})" if more else ""
        yield Issue(
            "blocking",
            "empty class",
            f"train: no image of {noun} {listed}{more}{highest}",
            f"remove the {noun} or renumber the labels, 0 to {task.plural} - 1 without gaps"
            if task.exclusive
            else f"remove the {noun}'s column",
        )
    full = [names[c] for c in np.flatnonzero(present["train"] == len(dataset.train))] if not task.exclusive else []
    if full:
        yield Issue("blocking", "full class", f"train: every image has {full[0]}", f"remove the {noun}'s column")
    if not task.exclusive and (dataset.train.targets.sum(axis=1) == 1).all():
        yield Issue(
            "warning",
            "one finding each",
            "every image has exactly one finding, as if they were classes",
            "give --task multi-class if they exclude each other, or ordinal if they are grades",
        )
    for split in ("val", "test"):
        if split in present:
            missing = [names[c] for c in np.flatnonzero(present[split] == 0)]
            if missing:
                yield Issue(
                    "warning",
                    "class missing",
                    f"{split}: no image of {', '.join(missing)}",
                    f"metrics of these {task.plural} cannot be given",
                )


def _pixels(dataset: Dataset) -> Iterator[Issue]:
    shapes = {split: part.images.shape[1:] for split, part in dataset.splits.items()}
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{split} {shape_in_words(s)}" for split, s in shapes.items())
        yield Issue("blocking", "shapes", f"splits differ in shape: {text}", "bring them to one shape")
    kinds = {split: str(part.images.dtype) for split, part in dataset.splits.items()}
    if len(set(kinds.values())) > 1:
        yield Issue("blocking", "dtype", f"splits differ in dtype: {kinds}", "bring them to one dtype")
    shape = dataset.image.shape
    if min(shape) < 16:
        yield Issue("warning", "small images", f"{shape_in_words(shape)} pixels", "will be enlarged to 16 pixels")
    if max(shape) > 512:
        yield Issue(
            "warning",
            "large images",
            f"{shape_in_words(shape)} pixels",
            "give --size 28 to 224; distilling costs by the pixel",
        )
    for split, part in dataset.splits.items():
        bad, beyond, constant = (np.zeros(len(part), dtype=bool) for _ in range(3))
        for start, block in blocks(part.images):
            flat, here = block.reshape(len(block), -1), slice(start, start + len(block))
            if block.dtype.kind == "f":
                bad[here] = ~np.isfinite(flat).all(axis=1)
                beyond[here] = np.abs(flat).max(axis=1) > GREATEST_INTENSITY
            constant[here] = flat.min(axis=1) == flat.max(axis=1)
        faults: tuple[tuple[Level, str, npt.NDArray[np.bool_], str, str], ...] = (
            ("blocking", "nan", bad, "has NaN or infinite pixels", "remove these images or fill the pixels"),
            ("blocking", "intensities", beyond & ~bad, f"has values beyond {GREATEST_INTENSITY:.0e}", "rescale them"),
            ("warning", "constant image", constant, "has a single value", "remove these images"),
        )
        for level, kind, rows, what, remedy in faults:
            if rows.any():
                message = f"{split}_images[{int(rows.argmax())}] {what} ({int(rows.sum())} images)"
                yield Issue(level, kind, message, remedy)


def _intensities(dataset: Dataset) -> Iterator[Issue]:
    """Splits on different scales, and pixels that are far from all others."""
    splits = {name: split.images for name, split in dataset.splits.items() if len(split) and split.images.size}
    most = {name: usual(images) for name, images in splits.items()}
    if not np.isfinite(list(most.values())).all():
        return  # told already
    for name, other in most.items():
        widths = sorted((other.width, most["train"].width))
        if 0 < SCALES_APART * widths[0] < widths[1]:
            yield Issue(
                "blocking",
                "scales",
                f"most pixels of train lie from {most['train']}, of {name} from {other}",
                "bring all splits to one scale, by multiplying one of them",
            )
    images = splits["train"]
    if images.dtype != np.uint8 and dataset.description.window is None:
        whole = extremes(images)
        if has_outliers(whole, most["train"]):
            yield Issue(
                "warning",
                "outlying intensities",
                f"train: all but {2 * RARE:g} % of the pixels lie from {most['train']}, the others reach {whole}",
                "the former become black to white; --set data.window=[LOW,HIGH] sets other bounds",
            )


def _splits(dataset: Dataset, ipc: int | None) -> Iterator[Issue]:
    for note in dataset.description.notes:
        if "split" in note:
            yield Issue("warning", "split made", note, "provide the split to decide it yourself")
    if dataset.description.flips == "none":
        yield Issue(
            "warning",
            "no flips",
            "nobody vouched that mirror images keep their class, so none are made",
            "give --flips horizontal or both if left and right do not matter",
        )
    task, counts = dataset.task, dataset.counts("train")
    if ipc is not None and not 1 <= ipc <= max(counts):
        yield Issue(
            "blocking",
            "images per class",
            f"{ipc} asked for",
            f"ask for 1 to {max(counts)}; the largest {task.noun} has no more training images",
        )
        ipc = None
    small = [i for i, n in enumerate(counts) if ipc is not None and 0 < n < ipc]
    for label in small:
        yield Issue(
            "warning",
            "small class",
            f"train: {task.noun} '{task.strata[label]}' has {counts[label]} images, {ipc} asked for",
            "it will give as many as it has",
        )
    if "test" not in dataset.splits:
        yield Issue("warning", "no test split", "nothing to evaluate on", "provide test images for evaluate")
    elif 0 < len(dataset.splits["test"]) < FEW_TESTED:
        yield Issue(
            "warning",
            "few test images",
            f"test: {len(dataset.splits['test'])} images",
            "figures on so few are chance; provide more of them",
        )
    patients = {s: set(p.patients.tolist()) for s, p in dataset.splits.items() if p.patients is not None}
    for first, second in _pairs(patients):
        both = sorted(patients[first] & patients[second])
        if both:
            yield Issue(
                "warning",
                "patients across splits",
                f"{len(both)} patients are in {first} and {second}",
                "results will flatter; split by patient",
            )
    if "test" in dataset.splits and len(dataset.splits["test"]):
        tested = len(dataset.splits["test"])
        train, test = np.array(counts) / len(dataset.train), np.array(dataset.counts("test")) / tested
        worst = int(np.abs(train - test).argmax())
        # Ten points, or what chance explains in a small test set.
        if abs(train[worst] - test[worst]) > max(0.10, 3 * np.sqrt(0.25 / tested)):
            yield Issue(
                "warning",
                "prior shift",
                f"{task.noun} '{task.strata[worst]}' is {train[worst]:.0%} of train and {test[worst]:.0%} of test",
                "read balanced accuracy and AUROC rather than accuracy",
            )


def _pairs(names: dict[str, set[str]]) -> list[tuple[str, str]]:
    present = [s for s in SPLITS if s in names]
    return [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]


def _duplicates(dataset: Dataset) -> Iterator[Issue]:
    present = {s: {""} for s in dataset.splits}
    # Channels last, as files have them, so that large arrays are not copied.
    flat = {s: np.moveaxis(part.images, 1, -1).reshape(len(part), -1) for s, part in dataset.splits.items()}
    digests = {s: _row_digests(rows) for s, rows in flat.items()}
    for name, own in digests.items():
        yield from _copies(name, own, dataset.splits[name].targets)
    for first, second in _pairs(present):
        seen = set(digests[first])
        exact = np.array([digest in seen for digest in digests[second]])
        near = _near_duplicates(flat[first], flat[second]) & ~exact
        for kind, rows in (("exact duplicates", exact), ("near duplicates", near)):
            if rows.any():
                yield Issue(
                    "warning",
                    kind,
                    f"{int(rows.sum())} of {len(rows)} {second} images are in {first} too, "
                    f"for instance {second}_images[{int(np.flatnonzero(rows)[0])}]",
                    f"remove them from {first}; results will flatter",
                )


def _copies(name: str, digests: list[bytes], targets: Targets) -> Iterator[Issue]:
    """Images that a split has several times, and those of them whose labels differ."""
    first: dict[bytes, int] = {}
    again = [row for row, digest in enumerate(digests) if first.setdefault(digest, row) != row]
    differ = [row for row in again if (targets[row] != targets[first[digests[row]]]).any()]
    if again:
        yield Issue(
            "warning",
            "copies",
            f"{len(again)} of {len(digests)} {name} images are copies of others of {name}, for instance "
            f"{name}_images[{again[0]}] of [{first[digests[again[0]]]}]",
            "remove them; they count more than others",
        )
    if differ:
        yield Issue(
            "warning",
            "contradictory labels",
            f"{len(differ)} {name} images are copies of others with another label, for instance "
            f"{name}_images[{differ[0]}] of [{first[digests[differ[0]]]}]",
            "find out which label is right",
        )


def _text(dataset: Dataset) -> Iterator[Issue]:
    """Images that show rows of letters, volumes in any slice; of large splits some are looked at."""
    for name, split in dataset.splits.items():
        rows = np.unique(np.linspace(0, len(split) - 1, min(READ, len(split))).astype(int)).tolist()
        found = [row for row in rows if any(map(shows_text, slices(split.images[row])))]
        if found:
            listed = ", ".join(str(row) for row in found[:5]) + (" ..." if found[5:] else "")
            yield Issue(
                "warning",
                "text in pixels",
                f"{name}: {len(found)} of {len(rows):,} images looked at seem to show letters (rows {listed})",
                "look at them, and remove what names a person: what all images show, a package shows too",
            )


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
) -> npt.NDArray[np.bool_]:
    """Which rows of ``second`` correlate above :data:`NEAR_DUPLICATE` with some row of ``first``.

    Small problems are computed outright. In large ones a random projection to 64 numbers
    (fixed seed) sorts out the bulk: a correlation of 0.995 keeps within about 0.00125
    (standard deviation, (1 − ρ²)/√64) there, so only pairs above 0.985 are compared in full.
    """
    if first.shape[1] <= 1024 and len(first) * len(second) <= 10**9:
        a, b = unit_rows(first), unit_rows(second)
        duplicate = np.zeros(len(b), dtype=bool)
        for i in range(0, len(b), block):
            for j in range(0, len(a), block):
                duplicate[i : i + block] |= (b[i : i + block] @ a[j : j + block].T).max(axis=1) > NEAR_DUPLICATE
        return duplicate
    mixer = np.random.default_rng(0).standard_normal((first.shape[1], 64), dtype=np.float32)
    low_a, low_b = (_projected(x, mixer) for x in (first, second))
    duplicate = np.zeros(len(second), dtype=bool)
    for i in range(0, len(low_b), block):
        for j in range(0, len(low_a), block):
            rows, columns = np.nonzero(low_b[i : i + block] @ low_a[j : j + block].T > 0.985)
            for row in np.unique(rows[~duplicate[i + rows]]):
                candidates = first[j + columns[rows == row]]
                normalised = unit_rows(second[i + row : i + row + 1])[0]
                duplicate[i + row] |= any(
                    (unit_rows(candidates[k : k + 256]) @ normalised).max() > NEAR_DUPLICATE
                    for k in range(0, len(candidates), 256)
                )
    return duplicate


def _projected(flat: npt.NDArray[np.generic], mixer: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return unit_rows(np.concatenate([unit_rows(block) @ mixer for _, block in blocks(flat)]))
