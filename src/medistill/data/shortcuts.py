"""What tells the class beside what images show of it: their border, their size, the site or scanner.

Networks learn whatever tells the class. Where scans of one class come from one device, or were cropped in another
way, that is learned in place of the disease, by networks trained on all images as by those trained on distilled ones,
and test images of the same source do not show it.

Source: DeGrave, Janizek, Lee, "AI for radiographic COVID-19 detection selects shortcuts over signal", Nature Machine
Intelligence 3, 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medistill.data.dataset import Dataset, Split
from medistill.data.issue import Issue
from medistill.data.resize import small_pictures
from medistill.keys import Key

LOOKED_AT = 2000
"""Training images that are looked at, at most."""

SIDE, RING = 24, 2
"""Pixels of a side to which images are brought, and of the border that is looked at: a twelfth of the side."""

ASKED = 20
"""Classes up to which each is asked for alone, and findings that are asked for."""

FOLDS = 5

FEWEST = 10
"""Images of a class, by as many patients, without which nothing is said of it."""

STRONG = 1 / 3
"""Of the way from chance to certainty: what tells the class that well is a warning."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shortcut:
    """How well something beside the disease tells the class.

    Args:
        cue: "border", "size" (of the files, before they were brought to one) or "site".
        target: the class, grade or finding that it tells from all others; empty where it tells all classes apart.
        balanced_accuracy: of a linear model, of images that it was not fitted to.
        low: lower end of its 95 % interval.
        chance: what guessing reaches.
        whole: balanced accuracy of the same model on whole images at 24 pixels.
    """

    cue: str
    target: str
    balanced_accuracy: float
    low: float
    chance: float
    whole: float

    @property
    def strength(self) -> float:
        """How far of the way from chance to certainty, at the lower end of the interval."""
        return (self.low - self.chance) / (1 - self.chance)

    @property
    def strong(self) -> bool:
        """Whether it is a warning."""
        return self.strength >= STRONG


CUES = {
    "border": "the border of the images alone, a twelfth of the side",
    "size": "the size of the files alone",
    "site": "the site or scanner alone",
}


def shortcuts(dataset: Dataset) -> list[Shortcut]:
    """How well each cue tells the class on training images, by a logistic regression that is tested on others.

    For each cue what it tells best: all classes, or one of them or a finding from the rest. Classes of fewer than ten
    images (or patients) are left out. Patients stay together.
    """
    train = dataset.train
    rows = np.sort(Key(0).child("shortcuts").numpy().permutation(len(train))[:LOOKED_AT])
    looked_at = train.take(rows, small_pictures(train.images, rows, SIDE).astype(np.float64))
    cues = _cues(looked_at)
    if not cues:
        return []
    whole, found = looked_at.images.reshape(len(looked_at), -1), []
    for target, labels in _questions(dataset, looked_at):
        known = _in_enough(labels, looked_at.patients)
        if len(np.unique(labels[known])) < 2:
            continue
        patients = None if looked_at.patients is None else looked_at.patients[known]
        plain = _told(whole[known], labels[known], patients)
        for cue, features in cues.items():
            told = _told(features[known], labels[known], patients)
            if told is not None and plain is not None:
                chance = 1 / len(np.unique(labels[known]))
                found.append(Shortcut(cue, target, told[0], told[1], chance, plain[0]))
    best: dict[str, Shortcut] = {}
    for one in found:
        if one.cue not in best or one.strength > best[one.cue].strength:
            best[one.cue] = one
    return list(best.values())


def shortcut_issues(dataset: Dataset, told: Sequence[Shortcut]) -> Iterator[Issue]:
    """Cues that tell the class well, of those that :func:`shortcuts` found."""
    for one in told:
        if one.strong:
            of = f" '{one.target}' from the rest" if one.target else ""
            yield Issue(
                "warning",
                "shortcut",
                f"train: {CUES[one.cue]} tells the {dataset.task.noun}{of} with a balanced accuracy of "
                f"{one.balanced_accuracy:.2f} (chance {one.chance:.2f}, whole images in the same linear model "
                f"{one.whole:.2f})",
                "find out why; what is learned from it fails at another site, and test images of this one do not "
                "show that",
            )


def _cues(split: Split) -> dict[str, Array]:
    """Features of each image (n, c, 24, 24) by cue, of those cues that differ among images."""
    ring = np.ones((SIDE, SIDE), dtype=bool)
    ring[RING:-RING, RING:-RING] = False
    cues: dict[str, Array] = {"border": split.images[:, :, ring].reshape(len(split), -1)}
    if split.sizes is not None:
        sides = np.log(split.sizes.astype(np.float64))
        _, kind = np.unique(split.sizes, axis=0, return_inverse=True)
        cues["size"] = np.concatenate([sides, _one_hot(kind)], axis=1)
    if split.sites is not None:
        _, site = np.unique(split.sites, return_inverse=True)
        cues["site"] = _one_hot(site)
    return {cue: features for cue, features in cues.items() if np.ptp(features, axis=0).max(initial=0) > 0}


def _one_hot(number: npt.NDArray[np.intp], most: int = 50) -> Array:
    """The most frequent of the numbers as columns of zeros and ones."""
    values, counts = np.unique(number, return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")[:most]]
    return np.asarray(number.reshape(-1, 1) == kept, dtype=np.float64)


def _questions(dataset: Dataset, split: Split) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """What is asked: the class, of more than two or of findings also whether each is there."""
    if dataset.task.exclusive:
        yield "", dataset.task.labels(split.targets)
        if not 2 < dataset.task.outputs <= ASKED:
            return
    for name, column in list(zip(dataset.task.class_names, split.targets.T, strict=True))[:ASKED]:
        yield name, column.astype(np.int64)


def _in_enough(labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_] | None) -> npt.NDArray[np.bool_]:
    """Whether an image is of a class of which there are enough images, of enough patients."""
    enough = [
        label
        for label in np.unique(labels)
        if len(labels[labels == label] if patients is None else np.unique(patients[labels == label])) >= FEWEST
    ]
    return np.isin(labels, enough)


def _told(
    features: Array, labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_] | None
) -> tuple[float, float] | None:
    """Balanced accuracy on images that the model was not fitted to, and the lower end of its interval.

    The interval takes recalls of classes as independent proportions, of as many patients as there are.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=0.1, class_weight="balanced", max_iter=100, tol=0.01)
    model = make_pipeline(StandardScaler(), regression)
    kind = StratifiedKFold if patients is None else StratifiedGroupKFold
    folds = kind(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so near to the best that it changes nothing here
        warnings.simplefilter("ignore", UserWarning)  # of folds without some class
        try:
            predicted = cross_val_predict(model, features, labels, groups=patients, cv=folds)
        except ValueError:  # a fold to fit on with a single class
            return None
    recalls, variance = [], 0.0
    for label in np.unique(labels):
        own = labels == label
        recall = float((predicted[own] == label).mean())
        counted = int(own.sum()) if patients is None else len(np.unique(patients[own]))
        recalls.append(recall)
        variance += recall * (1 - recall) / counted
    accuracy = sum(recalls) / len(recalls)
    return accuracy, max(0.0, accuracy - 1.96 * math.sqrt(variance) / len(recalls))
