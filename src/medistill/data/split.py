"""Splitting off a validation or test part where a source has none."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from medistill.data.dataset import Dataset, Names, Split, joined_splits
from medistill.data.duplicates import families
from medistill.data.sampling import draw_by_stratum
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.tasks.task import Task

FRACTION = 0.15
"""Share of each stratum (or of the patients) that is split off."""

SMALL_FAMILY = 10
"""Images of a family of near-copies that is kept together however few there are in all."""


How = Literal["stratified", "independent"]


def complete(dataset: Dataset, key: Key, how: How = "stratified", test_site: str | None = None) -> Dataset:
    """Split off from train what is missing of test (only where val is missing too) and val.

    By patient where every training image names one, else stratified by class, grade or finding, and the
    decision becomes a note of the data set. A source with "val" but no "test" is left as it is.

    Args:
        dataset: as read.
        key: of the draw.
        how: "stratified", or "independent": each patient, or each image, by a number drawn for it alone, so that
            who else is there changes nothing.
        test_site: a site whose images are the test images, see :func:`held_out_site`.

    Raises:
        ConfigError: there is no such site.
    """
    if test_site is not None:
        dataset = held_out_site(dataset, test_site)
    missing = ["test"] if set(dataset.splits) == {"train"} else []
    missing += [] if "val" in dataset.splits else ["val"]
    alike = _families(dataset.train) if missing and how != "independent" else None
    for name in missing:
        dataset, left = _split_off(dataset, name, key, how, alike)
        alike = None if alike is None else alike[left]
    return dataset


def held_out_site(dataset: Dataset, site: str) -> Dataset:
    """One site's images as the test images, from whatever split; those of others are no test images any more.

    Test images of other sites are left out, not trained on, so that what was kept for testing stays unseen.

    Raises:
        ConfigError: no site is known, none is called so, or no training image of another is left.
    """
    sites = {name: part.sites for name, part in dataset.splits.items() if part.sites is not None}
    if len(sites) < len(dataset.splits):
        raise ConfigError(
            f"'{site}', but not every image names its site",
            where="--test-site",
            allowed="data that name sites: {split}_sites in an .npz, a column of a table, DICOM headers",
        )
    own = {name: of == site for name, of in sites.items()}
    named = sorted({str(one) for of in sites.values() for one in of})
    if site not in named:
        raise ConfigError(
            f"'{site}'", where="--test-site", allowed=", ".join(named[:10]) + (" ..." if named[10:] else "")
        )
    if own["train"].all():
        raise ConfigError(f"'{site}' is the site of all training images", where="--test-site")
    taken = [part.take(np.flatnonzero(own[name])) for name, part in dataset.splits.items() if own[name].any()]
    splits = {
        name: part.take(np.flatnonzero(~own[name]))
        for name, part in dataset.splits.items()
        if name != "test" and not own[name].all()
    }
    splits["test"] = joined_splits(taken)
    left = int((~own["test"]).sum()) if "test" in own else 0
    note = f"test images are all {len(splits['test'])} of site '{site}'"
    return dataset.with_note(note + (f"; {left} of other sites were left out" if left else ""), splits)


def _families(train: Split) -> Names | None:
    """Names of families of images that are the same, or nearly; None where patients are known, or none are alike."""
    if train.patients is not None:
        return None
    alike = families(train.images, max(SMALL_FAMILY, int(FRACTION * len(train))))
    return alike.astype(str) if len(np.unique(alike)) < len(train) else None


def _split_off(
    dataset: Dataset, name: str, key: Key, asked: How, alike: Names | None
) -> tuple[Dataset, npt.NDArray[np.intp]]:
    """The data set with a part split off, and which rows of "train" are left in it."""
    train, task = dataset.train, dataset.task
    everyone = np.arange(len(train))
    if asked == "independent":
        rows, how = _independent(train, key.child("split", name)), "each by chance alone"
    elif train.patients is not None:
        rows, how = _by_patient(train, task, key.child("split", name)), "by patient"
    elif alike is not None:  # they go the same way, as if they were of one patient
        rows = _by_patient(replace(train, patients=alike), task, key.child("split", name))
        how = "copies and near-copies together, as not every image names its patient"
    else:
        rows = _stratified(train, task, key.child("split", name))
        how = f"stratified by {task.noun}, as not every image names its patient"
    if not rows.any():
        if train.patients is not None and len(set(train.patients.tolist())) == 1:
            dataset = dataset.with_note(f"no {name} split was made: all images name one patient")
        return dataset, everyone
    splits = dict(dataset.splits)
    splits["train"], splits[name] = train.take(everyone[~rows]), train.take(everyone[rows])
    note = f"no {name} split in the source: {int(rows.sum())} of {len(train)} training images split off, {how}"
    return dataset.with_note(note, splits), everyone[~rows]


def _independent(split: Split, key: Key) -> npt.NDArray[np.bool_]:
    """Equal images, like all of one patient, go the same way."""
    names = _digests(split) if split.patients is None else [str(patient) for patient in split.patients]
    drawn = {name: key.child(name).integer() / 2**63 for name in set(names)}
    return np.array([drawn[name] < FRACTION for name in names])


def _digests(split: Split) -> list[str]:
    """Equal for equal images."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in split.images]


def _wanted(size: int) -> int:
    """A stratum of one stays in train; others give at least one."""
    return 0 if size < 2 else max(1, round(FRACTION * size))


def _stratified(split: Split, task: Task, key: Key) -> npt.NDArray[np.bool_]:
    rows = np.zeros(len(split), dtype=bool)
    membership = task.membership(split.targets)
    sizes = membership.sum(axis=0)
    if task.exclusive:
        for drawn in draw_by_stratum(membership, [_wanted(n) for n in sizes], lambda s: key.child(s)):
            rows[drawn] = True
        return rows
    # An image of several findings counts for each of them, the rarest first; no stratum may leave train empty.
    left = sizes.copy()
    for stratum in np.argsort(sizes, kind="stable"):
        members = np.flatnonzero(membership[:, stratum] & ~rows)
        missing = _wanted(int(sizes[stratum])) - int(rows[membership[:, stratum]].sum())
        for row in key.child(int(stratum)).numpy().permutation(members):
            if missing <= 0:
                break
            if (left[membership[row]] > 1).all():
                rows[row], missing = True, missing - 1
                left -= membership[row]
    return rows


def _by_patient(split: Split, task: Task, key: Key) -> npt.NDArray[np.bool_]:
    assert split.patients is not None
    membership = task.membership(split.targets).astype(np.int64)
    names, of = np.unique(split.patients, return_inverse=True)
    images = np.zeros((len(names), membership.shape[1]), dtype=np.int64)
    np.add.at(images, of, membership)
    left = membership.sum(axis=0)
    target = FRACTION * left
    taken = np.zeros_like(left)
    chosen = np.zeros(len(names), dtype=bool)
    for patient in key.numpy().permutation(names):
        number = int(np.searchsorted(names, patient))
        counts = images[number]
        wanted = (counts > 0) & (taken < target)
        # Take a patient while one of its strata is wanted and no stratum would vanish from train.
        if wanted.any() and (left - counts >= (left > 0)).all() and (taken + counts <= target + counts.max()).all():
            chosen[number] = True
            taken += counts
            left = left - counts
        if (taken >= target).all():
            break
    return chosen[of]
