"""What can be wrong with a data set, listed all at once before hours of compute are spent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from medistill.data.arrays import blocks
from medistill.data.dataset import Dataset
from medistill.data.duplicates import duplicates, pairs_of_splits
from medistill.data.image import shape_in_words
from medistill.data.intensity import GREATEST_INTENSITY, RARE, has_outliers
from medistill.data.issue import NAMED, Issue, Level
from medistill.data.text import shows_text, slices
from medistill.errors import DataError

SCALES_APART = 8
"""Times as wide as another split's a split's usual intensities may not be."""

FEW_TESTED = 30
"""Test images below which a verdict would be chance."""

READ = 1000
"""Images of a split that are looked at for text, at most."""

LONGEST_NAME = 200
"""Characters of a class name."""


def check(dataset: Dataset, ipc: int | None = None, thorough: bool = True) -> list[Issue]:
    """List every problem of a data set, blocking ones first.

    Args:
        dataset: the data.
        ipc: images per class, grade or finding that will be asked for, if known.
        thorough: also look for duplicates across splits, which compares all images, and for text in pixels.
    """
    issues = [*_labels(dataset), *_pixels(dataset), *_intensities(dataset), *_splits(dataset, ipc)]
    issues += [*_faces(dataset), *_text(dataset, False)]
    if thorough and not any(issue.level == "blocking" for issue in issues):
        issues += [*duplicates(dataset), *_text(dataset, True)]
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
    if task.ordered and not dataset.description.order_stated:
        yield Issue(
            "blocking",
            "order of grades",
            f"which grade is the least nobody says: {', '.join(names)}",
            f"give them from the least to the greatest, --set 'data.class_names=[{', '.join(names)}]'",
        )
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
    most = np.float64(GREATEST_INTENSITY)  # a Python float would become one of 16 bits, which ends before
    for split, part in dataset.splits.items():
        bad, beyond, constant = (np.zeros(len(part), dtype=bool) for _ in range(3))
        for start, block in blocks(part.images):
            flat, here = block.reshape(len(block), -1), slice(start, start + len(block))
            low, high = flat.min(axis=1), flat.max(axis=1)
            if block.dtype.kind == "f":
                bad[here] = ~np.isfinite(flat).all(axis=1)
            beyond[here], constant[here] = (low < -most) | (high > most), low == high
        faults: tuple[tuple[Level, str, npt.NDArray[np.bool_], str, str], ...] = (
            ("blocking", "nan", bad, "has NaN or infinite pixels", "remove these images or fill the pixels"),
            ("blocking", "intensities", beyond & ~bad, f"has values beyond {GREATEST_INTENSITY:.0e}", "rescale them"),
            ("warning", "constant image", constant, "has a single value", "remove these images"),
        )
        for level, kind, rows, what, remedy in faults:
            if rows.any():
                message = f"{split}_images[{int(rows.argmax())}] {what} ({int(rows.sum())} images)"
                named = tuple((split, row) for row in np.flatnonzero(rows)[:NAMED].tolist())
                yield Issue(level, kind, message, remedy, named)


def _faces(dataset: Dataset) -> Iterator[Issue]:
    """Volumes that were read from files; whether they are of heads their headers do not say."""
    if dataset.image.dimensions == 3 and dataset.description.decoders:
        yield Issue(
            "warning",
            "faces",
            "a volume of a head shows the face, by which somebody can be recognised",
            "if these are of heads, remove the faces first, by a program for defacing",
        )


def _intensities(dataset: Dataset) -> Iterator[Issue]:
    """Splits on different scales, and pixels that are far from all others."""
    most = {name: split.usual for name, split in dataset.splits.items() if len(split) and split.images.size}
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
    if dataset.train.images.dtype != np.uint8 and dataset.description.window is None:
        whole = dataset.train.extremes
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
    for first, second in pairs_of_splits(patients):
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


def _text(dataset: Dataset, look: bool) -> Iterator[Issue]:
    """Images that show rows of letters: as found in files at their full size or, of what was not files, looked for
    here, in volumes in any slice; of large splits some are looked at.
    """
    for name, split in dataset.splits.items():
        known = split.letters is not None and bool((split.letters >= 0).any())
        if known == look:
            continue
        if split.letters is not None and known:
            looked = int((split.letters >= 0).sum())
            found: list[int] = np.flatnonzero(split.letters == 1).tolist()
        else:
            rows = np.unique(np.linspace(0, len(split) - 1, min(READ, len(split))).astype(int)).tolist()
            looked, found = len(rows), [row for row in rows if any(map(shows_text, slices(split.images[row])))]
        if found:
            listed = ", ".join(str(row) for row in found[:5]) + (" ..." if found[5:] else "")
            yield Issue(
                "warning",
                "text in pixels",
                f"{name}: {len(found)} of {looked:,} images looked at seem to show letters (rows {listed})",
                "look at them, and remove what names a person: what many images show, a package may show too",
                tuple((name, row) for row in found[:NAMED]),
            )


def require_no_letters(dataset: Dataset) -> None:
    """Files whose pixels seem to name somebody need somebody's word before they go into a package as they are.

    Raises:
        DataError: training images that were read from files seem to show letters.
    """
    told = [issue.found for issue in _text(dataset, False) if issue.rows[0][0] == "train"]
    if not told:
        return
    raise DataError(
        told[0],
        where=dataset.description.name,
        allowed="images in whose pixels nobody is named",
        remedy="look at them (check names them), remove what names a person, and --set data.burned_in_text=kept; "
        "or take a method that starts from noise",
    )
