"""What every source turns into: splits of raw images with labels, and a description."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from medistill.data.arrays import feed, take
from medistill.types import Json, Labels, RawImages

Flips = Literal["none", "horizontal", "both"]
"""Which mirror images keep their class: "none" where left and right (or up and down) are the label."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images of one split as read.

    Args:
        images: (n, h, w, c) integers or floats, c is 1 or 3.
        labels: (n,) class numbers; (n, k) zeros and ones where several findings may hold at once.
        patients: (n,) strings that name the patient, or None where unknown.
    """

    images: RawImages
    labels: Labels
    patients: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.intp]) -> Split:
        """The rows named, in that order."""
        patients = None if self.patients is None else self.patients[rows]
        return Split(take(self.images, rows), self.labels[rows], patients)


@dataclass(frozen=True)
class Description:
    """What is known of a data set besides its pixels.

    Args:
        name: short name used in files and reports.
        class_names: one per class number.
        flips: which mirror images keep their class; "none" unless somebody vouched for more.
        task: "classification" or "multi-label".
        licence: licence of the images, or "unknown".
        source: who made them, for citation.
        notes: what was decided while reading (a split made, names taken from a catalogue).
    """

    name: str
    class_names: tuple[str, ...]
    flips: Flips = "none"
    task: Literal["classification", "multi-label"] = "classification"
    licence: str = "unknown"
    source: str = "unknown"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Splits by name ("train" always, "val" and "test" where they exist) and the description."""

    splits: dict[str, Split]
    description: Description

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def classes(self) -> int:
        return len(self.description.class_names)

    def counts(self, split: str) -> list[int]:
        """Images per class in a split."""
        labels = self.splits[split].labels
        if labels.ndim == 2:
            return [int(n) for n in labels.sum(axis=0)]
        return [int(n) for n in np.bincount(labels[(labels >= 0) & (labels < self.classes)], minlength=self.classes)]

    def with_note(self, note: str, splits: dict[str, Split] | None = None) -> Dataset:
        """The same data with one more note, and other splits where given."""
        described = replace(self.description, notes=(*self.description.notes, note))
        return Dataset(self.splits if splits is None else splits, described)

    @cached_property
    def fingerprint(self) -> Json:
        """Content hash, counts and sizes: what identifies the data, not where it lies.

        The hash covers pixels, labels and patient ids of every split, so equal data gives
        equal fingerprints whatever the file is called.
        """
        digest = hashlib.sha256()
        summary: Json = {}
        for name in SPLITS:
            if name not in self.splits:
                continue
            split = self.splits[name]
            digest.update(f"{name}{split.images.shape}{split.images.dtype.str}{split.labels.shape}".encode())
            feed(digest, split.images)
            digest.update(np.ascontiguousarray(split.labels).data)
            if split.patients is not None:
                digest.update("\0".join(split.patients.tolist()).encode())
            summary[name] = {"images": len(split), "per_class": self.counts(name)}
        height, width, channels = self.train.images.shape[1:]
        return {
            "sha256": digest.hexdigest(),
            "size": [int(height), int(width)],
            "channels": int(channels),
            "dtype": str(self.train.images.dtype),
            "splits": summary,
        }
