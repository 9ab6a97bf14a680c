"""Splitting off a validation or test part where a source has none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medistill.data.dataset import Dataset, Split
from medistill.keys import Key

FRACTION = 0.15
"""Share of each class (or of the patients) that is split off."""


def complete(dataset: Dataset, key: Key) -> Dataset:
    """Split off from train what is missing of test (only where val is missing too) and val.

    By patient where every training image names one, else stratified by class, and the
    decision becomes a note of the data set. A source with "val" but no "test", or with
    labels of several findings, is left as it is.
    """
    if dataset.train.labels.ndim == 2:
        return dataset
    if set(dataset.splits) == {"train"}:
        dataset = _split_off(dataset, "test", key)
    if "val" not in dataset.splits:
        dataset = _split_off(dataset, "val", key)
    return dataset


def _split_off(dataset: Dataset, name: str, key: Key) -> Dataset:
    train = dataset.train
    if train.patients is not None:
        rows, how = _by_patient(train, key.child("split", name)), "by patient"
    else:
        rows, how = _stratified(train, key.child("split", name)), "stratified by class"
    if not rows.any():
        return dataset
    splits = dict(dataset.splits)
    splits["train"], splits[name] = train.take(np.flatnonzero(~rows)), train.take(np.flatnonzero(rows))
    note = f"no {name} split in the source: {int(rows.sum())} of {len(train)} training images split off, {how}"
    return dataset.with_note(note, splits)


def _stratified(split: Split, key: Key) -> npt.NDArray[np.bool_]:
    rows = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        # A class of one stays in train; others give at least one.
        wanted = 0 if len(members) < 2 else max(1, round(FRACTION * len(members)))
        rows[key.child(int(label)).numpy().permutation(members)[:wanted]] = True
    return rows


def _by_patient(split: Split, key: Key) -> npt.NDArray[np.bool_]:
    assert split.patients is not None
    rows = np.zeros(len(split), dtype=bool)
    patients = key.numpy().permutation(np.unique(split.patients))
    # Numbered here, because wrong labels are found and named later.
    numbers = np.unique(split.labels, return_inverse=True)[1]
    left = np.bincount(numbers)
    target = FRACTION * left
    taken = np.zeros_like(left)
    for patient in patients:
        own = split.patients == patient
        counts = np.bincount(numbers[own], minlength=len(left))
        wanted = (counts > 0) & (taken < target)
        # Take a patient while one of its classes is wanted and no class would vanish from train.
        if wanted.any() and (left - counts >= (left > 0)).all() and (taken + counts <= target + counts.max()).all():
            rows |= own
            taken += counts
            left = left - counts
        if (taken >= target).all():
            break
    return rows
