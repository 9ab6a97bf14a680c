"""Many files become one array for each split; what cannot be read is counted, and refused where it is too much."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Targets
from medistill.config import DataConfig
from medistill.data.arrays import BLOCK, empty, release
from medistill.data.dataset import Description, Names, Split
from medistill.data.dicom import HOUNSFIELD
from medistill.data.image import pixel_type, shape_in_words, white_of
from medistill.data.pictures import KINDS, ReadingOptions, SourceImage
from medistill.data.pseudonym import pseudonym
from medistill.data.read_cache import decoders, identity, keep, kept
from medistill.data.reading import read_pictures
from medistill.data.resize import brought_to
from medistill.errors import DataError, OutputError
from medistill.runtime import usable_cores
from medistill.tasks.task import Task

Array = npt.NDArray[Any]
Kind = tuple[tuple[int, ...], np.dtype[Any]]

DEFAULT_WINDOW = (-1000.0, 1000.0)
"""Hounsfield units that become black and white where nobody asks for others: from air to dense bone."""

SHOWN = "shown"
"""The unit of what was in Hounsfield units."""

UNNAMED = "images"
"""What a data set of files is called: a folder may be called by somebody's name."""

UNKNOWN = "\0"
"""What names begin with that nobody gave."""

FACTS = ("unit", "spacing", "patient", "scanner", "frames", "text", "shape", "modality", "transparent")
"""What is kept of a file beside its pixels, patients and scanners as salted hashes."""

NOTHING = np.zeros((0, 0, 0), dtype=np.uint8)


@dataclass(frozen=True)
class Assembled:
    """What became of the files.

    Args:
        images: of each split, (n, c, *spatial).
        rows: of each split, which of its files they are of, in order.
        pictures: what each of these files says beside its pixels.
        notes: what was left out and decided.
        window: Hounsfield units that were made black to white already, where some files have none.
        paths: of each of these files, below the source.
    """

    images: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    pictures: dict[str, list[SourceImage]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    window: tuple[float, float] | None = None
    paths: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """ "HU" where intensities are Hounsfield units."""
        return next((picture.unit for pictures in self.pictures.values() for picture in pictures), "")

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Of all files, where they agree to a hundredth."""
        found = [picture.spacing for pictures in self.pictures.values() for picture in pictures]
        known = [spacing for spacing in found if spacing is not None]
        if not known or len(known) < len(found) or np.ptp(np.array(known), axis=0).max() > 0.01 * known[0][0]:
            return None
        return known[0]

    def numbered(self, what: str, split: str) -> npt.NDArray[np.str_] | None:
        """Patients or scanners of a split as "patient 1", "patient 2", ..., None where no file says; a file that does
        not counts as one of its own.

        They are numbered in the order of the files, so that no header's words go further.
        """
        by_split = {
            name: [getattr(picture, what) or f"{UNKNOWN}{name}{place}" for place, picture in enumerate(own)]
            for name, own in self.pictures.items()
        }
        everyone = [name for names in by_split.values() for name in names]
        known = any(not name.startswith(UNKNOWN) for name in everyone)
        return names_by_number(by_split[split], everyone, what) if known else None

    def split(self, name: str, targets: Targets, patients: Names | None = None) -> Split:
        """What became of a split's files.

        Args:
            name: of the split.
            targets: of its images.
            patients: in place of those that the files name.
        """
        own = self.pictures[name]
        patients = self.numbered("patient", name) if patients is None else patients
        sizes = np.array([picture.shape for picture in own], dtype=np.int64)
        varied = bool(np.ptp(sizes, axis=0).any())
        paths = np.array(self.paths[name])
        scanners = self.numbered("scanner", name)
        letters = np.array([-1 if picture.text is None else int(picture.text) for picture in own], dtype=np.int8)
        return Split(self.images[name], targets, patients, scanners, sizes if varied else None, paths, letters)


def names_by_number(names: Sequence[str], everyone: Sequence[str], what: str) -> npt.NDArray[np.str_]:
    """Names as "patient 1", "patient 2", ... in the order of their first appearance among everyone's."""
    numbers: dict[str, int] = {}
    for name in everyone:
        numbers.setdefault(name, len(numbers) + 1)
    return np.array([f"{what} {numbers[name]}" for name in names])


def assemble(root: Path, files: dict[str, list[Path]], config: DataConfig) -> Assembled:
    """Read all files; each goes to its place as it is read, so that none is held twice.

    Args:
        root: the source, for messages.
        files: of each split.
        config: ``size`` and ``channels`` are needed where files differ; ``unreadable`` is the share of files that may
            be left out.

    Raises:
        DataError: more files that cannot be read, or images that differ where nothing is given to make them alike.
        OutputError: there is no room for a large set in the user's cache.
    """
    if config.spacing is not None and config.size is None:
        raise DataError(
            f"{config.spacing:g} mm between pixels, without a size", where="data.spacing",
            allowed="with --size: what is beyond is cut off, what is missing repeats the edge",
        )  # fmt: skip
    settings = config.model_dump(
        mode="json", include={"size", "channels", "slices", "unreadable", "window", "spacing", "bits"}
    )
    try:
        key = identity(files, settings)
    except OSError:  # told when it is read
        key = ""
    found = _remembered(key)
    if found is None:
        try:
            found = _assembled(root, files, config, None)
        except _MixedUnits:
            found = _assembled(root, files, config, config.window or DEFAULT_WINDOW)
        if key:
            keep(key, found.images, _facts(found))
    below = {split: [_in_a_line(files[split][row], root) for row in rows] for split, rows in found.rows.items()}
    return replace(found, paths=below)


def _in_a_line(file: Path, root: Path) -> str:
    """A file's path below the source; what no line can hold, or is no text, is a question mark."""
    below = Path(os.path.relpath(file, root)).as_posix()
    return "".join(c if c.isprintable() else "?" for c in below.encode("utf-8", "replace").decode())


def _facts(found: Assembled) -> Json:
    """All but the images, as JSON has it."""
    return {
        "rows": found.rows, "notes": found.notes, "window": found.window,
        "pictures": {
            split: [[getattr(one, name) for name in FACTS] for one in own] for split, own in found.pictures.items()
        },
    }  # fmt: skip


def _remembered(key: str) -> Assembled | None:
    """What was made of the same files before."""
    entry = kept(key) if key else None
    if entry is None:
        return None
    images, facts = entry
    try:
        pictures = {
            split: [SourceImage(NOTHING, **dict(zip(FACTS, map(_hashable, values), strict=True))) for values in own]
            for split, own in facts["pictures"].items()
        }
        return Assembled(images, facts["rows"], pictures, _hashable(facts["notes"]), _hashable(facts["window"]))
    except (KeyError, TypeError, ValueError, AttributeError):  # damaged
        return None


def _hashable(value: Any) -> Any:
    """A list that JSON made of a tuple as a tuple again."""
    return tuple(value) if isinstance(value, list) else value


class _MixedUnits(Exception):
    """Some files are in Hounsfield units, others as displayed."""


def _assembled(
    root: Path, files: dict[str, list[Path]], config: DataConfig, window: tuple[float, float] | None
) -> Assembled:
    """As :func:`assemble`, with Hounsfield units of a window made black to white where one is given.

    Raises:
        _MixedUnits: without a window only some files are in Hounsfield units.
    """
    images: dict[str, Array] = {}
    rows: dict[str, list[int]] = {name: [] for name in files}
    pictures: dict[str, list[SourceImage]] = {name: [] for name in files}
    bad: list[tuple[Path, str]] = []
    skipped: Counter[str] = Counter()
    kinds: dict[Kind, list[Path]] = {}
    refused: OutputError | None = None
    units: set[str] = set()
    for split, paths in files.items():
        unreleased = 0
        how = ReadingOptions(config.channels, config.slices == "volume", config.bits)
        read = read_pictures(paths, how, usable_cores())
        for row, (file, done) in enumerate(zip(paths, read, strict=True)):
            if done.picture is None:
                if done.skipped:
                    skipped[done.skipped] += 1
                else:
                    bad.append((file, done.reason))
                continue
            if config.spacing is not None and done.picture.spacing is None:
                bad.append((file, "says no spacing, which data.spacing needs"))
                continue
            picture = done.picture if window is None else _windowed(done.picture, window, config.bits)
            units.add(picture.unit)
            kinds.setdefault((picture.pixels.shape, picture.pixels.dtype), []).append(file)
            fitted = brought_to(np.moveaxis(picture.pixels, -1, 0), config.size, picture.spacing, config.spacing)
            if split not in images and refused is None:
                try:
                    images[split] = empty((len(paths), *fitted.shape), fitted.dtype)
                except OutputError as problem:  # images of many sizes are told before that there is no room for them
                    refused = problem
            place = images.get(split)
            if place is None or (fitted.shape, fitted.dtype) != (place.shape[1:], place.dtype):
                continue
            place[len(rows[split])] = fitted
            rows[split].append(row)
            patient, scanner, shape = (
                pseudonym(picture.patient),
                pseudonym(picture.scanner),
                picture.pixels.shape[:-1],
            )
            spacing = picture.spacing if config.spacing is None else (config.spacing,) * len(shape)
            pictures[split].append(
                replace(picture, pixels=NOTHING, shape=shape, patient=patient, scanner=scanner, spacing=spacing)
            )
            unreleased += fitted.nbytes
            if unreleased > BLOCK:
                release(place)
                unreleased = 0
        if split in images:
            release(images[split])
    if window is None and len(units) > 1:
        raise _MixedUnits
    total = sum(map(len, files.values()))
    if len(bad) > config.unreadable * total + 1e-9:
        raise _refusal(bad, total)
    _require_alike(root, kinds, config)
    if refused is not None:
        raise refused
    whole = {split: array[: len(rows[split])] for split, array in images.items() if rows[split]}
    if (first := next(iter(files))) not in whole:
        raise DataError(
            f"holds no {first} image that can be read", where=root, allowed=KINDS,
            remedy=f"left out: {', '.join(sorted(skipped)) or 'unreadable files'}",
        )  # fmt: skip
    notes = [*_notes(bad, skipped, pictures, window), *(f"no image of {s} is left" for s in files if s not in whole)]
    return Assembled(whole, rows, pictures, tuple(notes), window)


def unnamed_patients(found: Assembled) -> list[str]:
    """A note on files of which nobody says whose they are, where of others somebody does."""
    unnamed = [not picture.patient for own in found.pictures.values() for picture in own]
    if not any(unnamed) or all(unnamed):
        return []
    return [f"{sum(unnamed)} of {len(unnamed)} images name no patient, and count as patients of their own"]


def described(task: Task, found: Assembled, notes: tuple[str, ...]) -> Description:
    """The description of a data set that was read from files. It has no name of theirs."""
    window = found.window or (DEFAULT_WINDOW if found.unit == HOUNSFIELD else None)
    from_dicom = any(picture.modality for own in found.pictures.values() for picture in own)
    return Description(
        UNNAMED, task, notes=notes, spacing=found.spacing, window=window, decoders=tuple(decoders().items()),
        from_dicom=from_dicom,
    )  # fmt: skip


def _windowed(picture: SourceImage, window: tuple[float, float], bits: int) -> SourceImage:
    """Hounsfield units as they are shown; what has none as it is."""
    if picture.unit != HOUNSFIELD:
        return picture
    low, high = window
    values = picture.pixels.astype(np.float32)  # in the precision in which all images are prepared
    white = white_of(pixel_type(bits))
    shown = np.rint((values - low) * (white / (high - low))).clip(0, white).astype(pixel_type(bits))
    return replace(picture, pixels=shown, unit=SHOWN)


def _refusal(bad: list[tuple[Path, str]], total: int) -> DataError:
    others = ", ".join(f"{f.parent.name}/{f.name}" for f, _ in bad[1:4])
    more = f"; {len(bad) - 1} more files like it: {others}" if bad[1:] else ""
    leave_out = f"--set data.unreadable={_share(len(bad), total)} leaves out what cannot be read"
    return DataError(bad[0][1] + more, where=bad[0][0], allowed=KINDS, remedy=f"remove or replace it; {leave_out}")


def _share(bad: int, total: int) -> float:
    """A share of two digits that is enough."""
    return min(1.0, -(-100 * bad // total) / 100)


def _notes(
    bad: list[tuple[Path, str]],
    skipped: Counter[str],
    pictures: dict[str, list[SourceImage]],
    window: tuple[float, float] | None,
) -> Iterator[str]:
    if bad:
        yield f"{len(bad)} files could not be read and were left out"
    for kind, number in sorted(skipped.items()):
        yield f"{number} DICOM files were left out: {kind}"
    modalities = Counter(picture.modality for own in pictures.values() for picture in own if picture.modality)
    if modalities:
        yield "modalities: " + ", ".join(f"{name} {number}" for name, number in modalities.most_common())
    several = sum(picture.frames > 1 for own in pictures.values() for picture in own)
    if several:
        taken = "the middle one, of volumes the first, was taken"
        yield f"{several} files hold several frames, slices or volumes: {taken}"
    transparent = sum(picture.transparent for own in pictures.values() for picture in own)
    if transparent:
        yield f"{transparent} files have transparent pixels: these were taken as the colour that is stored for them"
    if any(picture.unit == HOUNSFIELD for own in pictures.values() for picture in own):
        yield "intensities are Hounsfield units, those below -1024 set to -1024"
    shown = sum(picture.unit == SHOWN for own in pictures.values() for picture in own)
    if shown and window is not None:
        low, high = window
        yield f"{shown} files of computed tomography are among others: {low:g} to {high:g} HU became black to white"


def _require_alike(root: Path, kinds: dict[Kind, list[Path]], config: DataConfig) -> None:
    """One line that names everything that is mixed, an example of each, and what to do."""
    if len({len(shape) for shape, _ in kinds}) > 1:
        flat = next(files[0] for (shape, _), files in kinds.items() if len(shape) == 3)
        raise DataError(
            f"has pictures among volumes, for instance {flat}",
            where=root,
            remedy="give --set data.slices=middle",
        )
    differences = {
        "sizes": (lambda shape, _: shape_in_words(shape[:-1]), "give --size N to bring all to one size", config.size),
        "modes": (lambda shape, _: "gray" if shape[-1] == 1 else "RGB", "give --channels 1 or 3", config.channels),
        "depths": (lambda _, dtype: f"{8 * dtype.itemsize}-bit", "convert the files to one depth", None),
    }
    mixed, remedies, example = [], [], None
    for kind, (describe, remedy, given) in differences.items():
        counts: Counter[str] = Counter()
        for (shape, dtype), files in kinds.items():
            counts[describe(shape, dtype)] += len(files)
        if len(counts) > 1 and given is None:
            top = counts.most_common()
            mixed.append(f"mixed {kind} (" + ", ".join(f"{k}: {n} files" for k, n in top[:4]) + ")")
            remedies.append(remedy)
            example = next(f[0] for (shape, dtype), f in kinds.items() if describe(shape, dtype) == top[-1][0])
    if mixed:
        raise DataError(f"{' and '.join(mixed)}, for instance {example}", where=root, remedy=" and ".join(remedies))
