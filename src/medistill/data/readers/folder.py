"""Class folders: ``train/<class>/*.png`` with or without split folders, PNG, JPEG, TIFF or BMP.

A file ``patients.csv`` at the top, with the columns ``file`` (path below the top) and
``patient``, names patients; then splits are made and checked by patient.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from medistill.config import DataConfig
from medistill.data.arrays import BLOCK, empty, release
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.image import Shape
from medistill.data.reader import Reader, register_reader
from medistill.data.resize import resize
from medistill.errors import ConfigError, DataError, OutputError
from medistill.tasks.task import Task, inferred_task

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
"""Files and folders that operating systems leave behind, beside those whose name begins with a dot."""
LAYOUT = "train/<class>/*.png, or <class>/*.png without split folders (PNG, JPEG, TIFF, BMP)"

Picture = npt.NDArray[Any]
"""One image, (h, w, c)."""


def read_folder(root: Path, size: Shape | None = None, channels: int | None = None) -> Dataset:
    """Read a folder of class folders.

    Args:
        root: the folder.
        size: bring every image to this (height, width); needed where sizes differ.
        channels: 1 or 3, convert every image; needed where gray and RGB are mixed.

    Raises:
        DataError: no images, unreadable images, mixed sizes, modes or depths, unequal classes.
    """
    tops = _split_folders(root)
    names = _class_names(tops)
    by_class = {split: [_files(top / name) for name in names] for split, top in tops.items()}
    files = {split: [images for images, _ in groups] for split, groups in by_class.items()}
    others = [file for groups in by_class.values() for _, unread in groups for file in unread]
    if not any(files["train"]):
        raise DataError("holds no image", where=tops["train"], allowed=LAYOUT)
    rows = {
        split: [(file, label) for label, group in enumerate(groups) for file in group]
        for split, groups in files.items()
    }
    images = _read_all(root, {split: [file for file, _ in pairs] for split, pairs in rows.items()}, size, channels)
    patients = _patients(root)
    task = inferred_task(np.empty(0), names)
    splits = {split: _split(root, pairs, images[split], patients, task) for split, pairs in rows.items() if pairs}
    return Dataset(splits, Description(root.resolve().name, task, notes=_left_out(others)))


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split; the top itself is "train" where it holds the classes."""
    tops: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in tops:
            raise DataError(f"has both '{tops[split].name}' and '{folder.name}'", where=root, remedy="merge the two")
        if split:
            tops[split] = folder
    beside = [f for f in _folders(root) if tops and f not in tops.values() and _files(f)[0]]
    if beside:
        raise DataError(
            f"has images in '{beside[0].name}', which is no split, beside {', '.join(sorted(tops))}",
            where=root,
            allowed=", ".join(sorted(set(SPLIT_NAMES))),
            remedy="rename that folder, or move it elsewhere",
        )
    if tops and "train" not in tops:
        raise DataError(f"has {', '.join(sorted(tops))} but no train folder", where=root, allowed=LAYOUT)
    return tops or {"train": root}


def _class_names(tops: dict[str, Path]) -> list[str]:
    names = [d.name for d in _folders(tops["train"])]
    odd = [name for name in names if not name.isprintable()]
    if odd:
        raise DataError(
            f"class folder {odd[0]!r} has unprintable characters", where=tops["train"], remedy="rename it"
        )
    if not names:
        raise DataError("holds no class folder", where=tops["train"], allowed=LAYOUT)
    for top in tops.values():
        extra = sorted({d.name for d in _folders(top)} - set(names))
        if extra:
            raise DataError(
                f"class '{extra[0]}' is not in {tops['train']}", where=top, allowed=", ".join(sorted(names))
            )
    return names


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not _hidden(d.name)) if path.is_dir() else []


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, sorted, and its other files, but nothing that is hidden or an operating system's."""
    candidates = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    files = [file for file in candidates if not any(_hidden(part) for part in file.relative_to(path).parts)]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in SUFFIXES]
    return images, others


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def _left_out(others: list[Path]) -> tuple[str, ...]:
    """A note on files that are no images of a kind read here."""
    if not others:
        return ()
    kinds = ", ".join(sorted({file.suffix.lower() or "without suffix" for file in others}))
    return (f"{len(others)} files in class folders were left out ({kinds}); images read are PNG, JPEG, TIFF and BMP",)


def read_image(path: Path, channels: int | None = None) -> Picture:
    """One image as (h, w, c), ``uint8`` or ``uint16``; transparency is dropped, palettes are resolved.

    A photograph's orientation tag is obeyed. What cannot be read without loss is refused: several
    pages, floating-point pixels, more than 8 bits per colour.

    Raises:
        OSError, ValueError, SyntaxError: not a readable image (what Pillow raises).
    """
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        pages = getattr(opened, "n_frames", 1)
        if pages > 1:
            raise ValueError(f"{pages} pages; save one file for each")
        if _deeper_than_read(path, opened):
            raise ValueError(
                "16 bits per sample in colour or with transparency; save it with 8 bits per sample, or as 16-bit gray"
            )
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            array = np.asarray(image)
            if array.min() < 0 or array.max() > 65535:
                raise ValueError("values outside 0 to 65535")
            array = array.astype(np.uint16)[..., None]
            return np.repeat(array, 3, axis=2) if channels == 3 else array
        gray = image.mode in ("1", "L", "LA", "La") or (image.mode == "P" and _is_gray(image))
        wanted = {1: "L", 3: "RGB", None: "L" if gray else "RGB"}[channels]
        if image.mode == "F":
            raise ValueError("floating-point pixels")
        array = np.asarray(image.convert(wanted))
        return array[..., None] if array.ndim == 2 else array


def _deeper_than_read(path: Path, opened: Any) -> bool:
    """Whether Pillow would cut more than 8 bits per sample to 8, as it does where there are several samples."""
    if opened.format == "PNG":
        with path.open("rb") as stream:
            header = stream.read(26)
        return header[24] == 16 and header[25] != 0  # 0: gray alone
    if opened.format == "TIFF":
        bits = opened.tag_v2.get(258, 1)
        return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return False


def _is_gray(image: Any) -> bool:
    """Whether every colour of a palette is a gray."""
    palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def _read_all(
    root: Path, files: dict[str, list[Path]], size: Shape | None, channels: int | None
) -> dict[str, Picture]:
    """The images of each split, (n, c, h, w); each goes to its place as it is read, so that none is held twice.

    Raises:
        DataError: files that cannot be read, or images that differ where nothing is given to make them alike.
        OutputError: there is no room for a large set in the user's cache.
    """
    out: dict[str, Picture] = {}
    bad: list[tuple[Path, str]] = []
    kinds: dict[tuple[tuple[int, ...], np.dtype[Any]], list[Path]] = {}
    refused: OutputError | None = None
    for split, paths in files.items():
        unreleased = 0
        for row, file in enumerate(paths):
            try:
                image = read_image(file, channels)
            except Exception as problem:  # decoders raise many kinds on damaged files
                reason = "is empty (0 bytes)" if file.stat().st_size == 0 else f"cannot be read ({problem})"
                bad.append((file, reason.replace(f" {str(file)!r}", "")))
                continue
            kinds.setdefault((image.shape, image.dtype), []).append(file)
            fitted = _fitted(image.transpose(2, 0, 1), size)
            if split not in out and refused is None:
                try:
                    out[split] = empty((len(paths), *fitted.shape), fitted.dtype)
                except OutputError as problem:  # images of many sizes are told before that there is no room for them
                    refused = problem
            place = out.get(split)
            if place is None or (fitted.shape, fitted.dtype) != (place.shape[1:], place.dtype):
                continue
            place[row] = fitted
            unreleased += fitted.nbytes
            if unreleased > BLOCK:
                release(place)
                unreleased = 0
        if split in out:
            release(out[split])
    if bad:
        others = ", ".join(f"{f.parent.name}/{f.name}" for f, _ in bad[1:4])
        more = f"; {len(bad) - 1} more files like it: {others}" if bad[1:] else ""
        raise DataError(
            bad[0][1] + more, where=bad[0][0], allowed="PNG, JPEG, TIFF, BMP", remedy="remove or replace it"
        )
    _require_alike(root, kinds, size, channels)
    if refused is not None:
        raise refused
    return out


def _fitted(image: Picture, size: Shape | None) -> Picture:
    """An image (c, h, w) at ``size``, in its own depth."""
    if size is None or image.shape[1:] == size:
        return image
    top = np.iinfo(image.dtype).max
    fitted: Picture = np.rint(resize(image[None], size)[0]).clip(0, top).astype(image.dtype)
    return fitted


def _require_alike(
    root: Path,
    kinds: dict[tuple[tuple[int, ...], np.dtype[Any]], list[Path]],
    size: Shape | None,
    channels: int | None,
) -> None:
    """One line that names everything that is mixed, an example of each, and what to do."""
    differences = {
        "sizes": (lambda shape, _: f"{shape[0]}x{shape[1]}", "give --size N to bring all to one size", size),
        "modes": (lambda shape, _: "gray" if shape[2] == 1 else "RGB", "give --channels 1 or 3", channels),
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


def _split(
    root: Path, rows: list[tuple[Path, int]], images: Picture, patients: dict[str, str] | None, task: Task
) -> Split:
    ids = None
    if patients is not None:
        keys = [file.relative_to(root).as_posix() for file, _ in rows]
        missing = [k for k in keys if not patients.get(k)]
        if missing:
            raise DataError(
                f"names no patient for {missing[0]} ({len(missing)} in all)",
                where=root / "patients.csv",
                remedy="name every image by its path below the folder, with / between folders",
            )
        ids = np.array([patients[k] for k in keys])
    return Split(images, task.targets(np.array([label for _, label in rows], dtype=np.int64)), ids)


def _patients(root: Path) -> dict[str, str] | None:
    path = root / "patients.csv"
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "patient"} <= set(reader.fieldnames or ()):
                raise DataError(f"has the columns {reader.fieldnames}", where=path, allowed="file, patient")
            patients: dict[str, str] = {}
            for row in reader:
                file, patient = str(row["file"]), (row["patient"] or "").strip()
                if patients.setdefault(file, patient) != patient:
                    raise DataError(
                        f"names two patients for {file}: {patients[file]} and {patient}",
                        where=path,
                        remedy="keep one line for each image",
                    )
            return patients
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(
            f"cannot be read ({problem})", where=path, allowed="a CSV file in UTF-8", remedy="save it as UTF-8"
        ) from problem


@register_reader
class FolderReader(Reader):
    """Class folders of pictures."""

    name: ClassVar[str] = "folder"
    accepts: ClassVar[str] = "a folder of class folders"
    order: ClassVar[int] = 20

    def matches(self, source: str, path: Path) -> bool:
        return path.is_dir()

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        if config.size is not None and len(config.size) != 2:
            raise ConfigError(f"{config.size} for pictures", where="data.size", allowed="one number, or two")
        return read_folder(path, config.size, config.channels)
