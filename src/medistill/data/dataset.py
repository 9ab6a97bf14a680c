"""What every source turns into: splits of raw images with their targets, and a description."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, RawImages, Targets
from medistill.data.arrays import blocks, empty, take
from medistill.data.image import Flips, ImageSpec
from medistill.data.intensity import Range, extremes, usual
from medistill.tasks.task import Task

SPLITS = ("train", "val", "test")

Names = npt.NDArray[np.str_]

KNOWN = ("patients", "sites", "sizes", "files", "letters")
"""What may be known of each image of a split."""


@dataclass(frozen=True)
class Split:
    """Images of one split as read, one record a row.

    Args:
        images: (n, c, *spatial) integers or floats, c is 1 or 3.
        targets: (n, outputs) zeros and ones.
        patients: (n,) strings that name the patient, or None where unknown.
        sites: (n,) strings that name the site or scanner, or None where unknown.
        sizes: (n, axes) pixels along each axis in the files, where they were brought to one size; else None.
        files: (n,) strings that name each image's file below the source, where there are files; for messages, no
            package holds them.
        letters: (n,) 1 where a file at its full size seems to show letters, 0 where it does not, -1 where nobody
            looked; None where there are no files.
    """

    images: RawImages
    targets: Targets
    patients: Names | None = None
    sites: Names | None = None
    sizes: npt.NDArray[np.int64] | None = None
    files: Names | None = None
    letters: npt.NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def extremes(self) -> Range:
        """:func:`medistill.data.intensity.extremes` of the images, which must not be changed from then on."""
        return extremes(self.images)

    @cached_property
    def usual(self) -> Range:
        """:func:`medistill.data.intensity.usual` of the images, which must not be changed from then on."""
        return usual(self.images)

    def take(self, rows: npt.NDArray[np.intp], images: RawImages | None = None) -> Split:
        """The rows named, in that order; with ``images`` (rows, c, *spatial) in place of their own, where given."""
        said = {name: getattr(self, name) for name in KNOWN}
        taken = {name: None if values is None else values[rows] for name, values in said.items()}
        return Split(take(self.images, rows) if images is None else images, self.targets[rows], **taken)

    def named(self, row: int) -> str | None:
        """The file of an image, below the source; None where there are no files."""
        return None if self.files is None else str(self.files[row])


def joined_splits(splits: Sequence[Split]) -> Split:
    """The images of several, one after the other; of what some do not say nothing is kept."""
    said = {}
    for name in KNOWN:
        values = [getattr(split, name) for split in splits]
        said[name] = None if any(value is None for value in values) else np.concatenate(values)
    count = sum(map(len, splits))
    images = empty((count, *splits[0].images.shape[1:]), splits[0].images.dtype)
    start = 0
    for split in splits:
        for first, block in blocks(split.images):
            images[start + first : start + first + len(block)] = block
        start += len(split)
    return Split(images, np.concatenate([split.targets for split in splits]), **said)


@dataclass(frozen=True)
class Description:
    """What is known of a data set besides its pixels.

    Args:
        name: short name used in files and reports.
        task: what the labels mean, with the names of classes, grades or findings.
        flips: which mirror images keep their class; "none" unless somebody vouched for more.
        licence: licence of the images, or "unknown".
        source: who made them, for citation.
        notes: what was decided while reading (a split made, names taken from a catalogue).
        spacing: millimetres between pixels along each axis, where known.
        window: intensities that become black and white, where the source says so and nobody asks for others.
        decoders: libraries that read files, with their versions, where the source is files.
        from_dicom: whether files had headers of DICOM, none of which is kept.
        order_stated: whether somebody said in which order grades are, where the task has any.
    """

    name: str
    task: Task
    flips: Flips = "none"
    licence: str = "unknown"
    source: str = "unknown"
    notes: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    decoders: tuple[tuple[str, str], ...] = ()
    from_dicom: bool = False
    order_stated: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the task's outputs."""
        return self.task.class_names


@dataclass(frozen=True)
class Dataset:
    """Splits by name ("train" always, "val" and "test" where they exist) and the description."""

    splits: dict[str, Split]
    description: Description

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def task(self) -> Task:
        return self.description.task

    @property
    def image(self) -> ImageSpec:
        """What the images are as read."""
        images = self.train.images
        shape = tuple(int(side) for side in images.shape[2:])
        return ImageSpec(int(images.shape[1]), shape, str(images.dtype), spacing=self.description.spacing)

    def counts(self, split: str) -> list[int]:
        """Images in each stratum of a split."""
        return self.task.counts(self.splits[split].targets)

    def with_note(self, note: str, splits: dict[str, Split] | None = None) -> Dataset:
        """The same data with one more note, and other splits where given."""
        described = replace(self.description, notes=(*self.description.notes, note))
        return Dataset(self.splits if splits is None else splits, described)

    @cached_property
    def fingerprint(self) -> Json:
        """Content hash, counts and sizes: what identifies the data, not where it lies.

        The hash covers pixels, labels and patient ids of every split, so equal data gives
        equal fingerprints whatever the file is called. It takes images with their channels last and labels as
        numbers, as it always did.
        """
        digest = hashlib.sha256()
        summary: Json = {}
        for name in SPLITS:
            if name not in self.splits:
                continue
            split = self.splits[name]
            labels = self.task.labels(split.targets)
            count, channels, *shape = split.images.shape
            digest.update(f"{name}{(count, *shape, channels)}{split.images.dtype.str}{labels.shape}".encode())
            for _, block in blocks(split.images):
                digest.update(np.ascontiguousarray(np.moveaxis(block, 1, -1)).data)
            digest.update(np.ascontiguousarray(labels).data)
            for kind, names in (("", split.patients), ("sites", split.sites)):
                if names is not None:
                    digest.update((kind + "\0".join(names.tolist())).encode())
            summary[name] = {"images": len(split), "per_stratum": self.counts(name)}
        image = self.image
        return {
            "sha256": digest.hexdigest(),
            "shape": list(image.shape),
            "channels": image.channels,
            "dtype": image.dtype,
            "splits": summary,
        }
