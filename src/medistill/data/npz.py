"""MedMNIST-layout arrays: ``{train,val,test}_images`` and ``{train,val,test}_labels``, in an ``.npz`` or as ``.npy``.

Large arrays stay in files: a folder of ``.npy`` files is mapped as it is, large images in an
``.npz`` are unpacked once into the user's cache.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.data.arrays import LARGE, read_array
from medistill.data.dataset import SPLITS, Dataset, Description, Split
from medistill.errors import DataError, MedistillError, OutputError, nearest
from medistill.files import refusing_output, sha256_text, user_cache
from medistill.progress import Progress

LAYOUT = "train_images (n, h, w) or (n, h, w, 3) and train_labels (n,) or (n, 1); the same for val and test"
KEYS = frozenset(f"{split}_{part}" for split in SPLITS for part in ("images", "labels", "patients")) | {"class_names"}

IMAGES = frozenset(f"{split}_images.npy" for split in SPLITS)


def read_npz(path: Path, description: Description | None = None) -> Dataset:
    """Read a MedMNIST-layout file of any image size, gray or RGB.

    Optional extra keys: ``{split}_patients`` (n,) names each image's patient, and
    ``class_names`` (classes,) names the classes. Nothing in the file is unpickled.

    Args:
        path: the file.
        description: class names, flips and licence where known; else made from the file.

    Raises:
        DataError: missing, not an npz, wrong keys, shapes or kinds of number.
    """
    arrays, present = _arrays(path)
    return _dataset(path, arrays, present, description)


def _dataset(
    path: Path, arrays: dict[str, npt.NDArray[Any]], present: list[str], description: Description | None
) -> Dataset:
    if "train_images" not in arrays or "train_labels" not in arrays:
        wanted = "train_images" if "train_images" not in arrays else "train_labels"
        raise DataError(
            f"has no key '{wanted}' but {', '.join(sorted(present)[:12]) or 'nothing'}",
            where=path,
            allowed=LAYOUT,
            remedy=f"rename the arrays ({nearest(wanted, present[:100])})" if present else None,
        )
    splits = {}
    for name in SPLITS:
        if f"{name}_images" in arrays and f"{name}_labels" not in arrays:
            raise DataError(f"has '{name}_images' without '{name}_labels'", where=path, allowed=LAYOUT)
        if f"{name}_images" in arrays and arrays[f"{name}_images"].size:
            splits[name] = _split(path, name, arrays)
    if "train" not in splits:
        raise DataError("holds no training image", where=f"{path}, train_images", allowed=LAYOUT)
    _require_one_kind(path, splits)
    return Dataset(splits, description or _describe(path, arrays, splits))


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is one of ``.npy`` files in this layout."""
    return (folder / "train_images.npy").is_file()


def read_npy_folder(folder: Path) -> Dataset:
    """Read a folder of ``.npy`` files named as the arrays of an ``.npz``; images stay in their files.

    Raises:
        DataError: as :func:`read_npz`.
    """
    arrays = {}
    for path in sorted(folder.glob("*.npy")):
        if path.stem in KEYS:
            try:
                arrays[path.stem] = read_array(path)
            except (OSError, ValueError, EOFError) as problem:
                pickled = "allow_pickle" in str(problem) or "Python objects" in str(problem)
                found = "holds pickled objects, which are never opened" if pickled else "is no readable .npy file"
                raise DataError(found, where=path, allowed=LAYOUT, remedy="write it with numpy.save") from problem
    return _dataset(folder, arrays, [path.stem for path in folder.glob("*.npy")], None)


def _require_one_kind(path: Path, splits: dict[str, Split]) -> None:
    train = splits["train"].labels
    for name, split in splits.items():
        if split.labels.shape[1:] != train.shape[1:]:
            raise DataError(
                f"has shape {split.labels.shape}",
                where=f"{path}, {name}_labels",
                allowed=f"one label an image like train_labels {train.shape}",
            )
    # There cannot be more classes than images; a stray label must not make a million names.
    most = max(2, len(train))
    if train.ndim == 1 and train.max() >= most:
        row = int(train.argmax())
        raise DataError(
            f"train_labels[{row}] is {train[row]}, with {len(train)} images",
            where=path,
            allowed=f"0 to {most - 1}",
            remedy="renumber the labels, 0 to classes - 1 without gaps",
        )


def _arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """The arrays of the layout, and the names of everything in the file; what is not ours stays unread."""
    if not path.is_file():
        raise DataError("no such file", where=path, remedy="check the path")
    try:
        if not zipfile.is_zipfile(path):
            single = path.open("rb").read(6) == b"\x93NUMPY"
            found = "is a single array, not an .npz archive" if single else "is not a readable .npz archive"
            raise DataError(found, where=path, allowed=LAYOUT, remedy="write it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            large = _unpacked(path, archive.zip)
            arrays = {key: large[key] if key in large else archive[key] for key in archive.files if key in KEYS}
            if all(isinstance(array, np.ndarray) for array in arrays.values()):
                return arrays, list(archive.files)
            raise DataError("holds members that are no arrays", where=path, allowed=LAYOUT)
    except MedistillError:
        raise
    except MemoryError as problem:
        raise DataError(
            "claims to be larger than the memory", where=path, remedy="check or write it anew"
        ) from problem
    except Exception as problem:  # numpy and zipfile raise many kinds on damaged files
        pickled = "allow_pickle" in str(problem) and zipfile.is_zipfile(path)
        found = "holds pickled objects, which are never opened" if pickled else "is not a readable .npz archive"
        raise DataError(found, where=path, allowed=LAYOUT, remedy="write it with numpy.savez") from problem


def _unpacked(path: Path, archive: zipfile.ZipFile) -> dict[str, npt.NDArray[Any]]:
    """The large images of an archive, as files of the user's cache that hold them unpacked.

    They are known by the archive's place, size and time of change.

    Raises:
        OutputError: they cannot be written.
    """
    large = [m for m in archive.infolist() if m.filename in IMAGES and m.file_size >= LARGE]
    if not large:
        return {}
    state = path.stat()
    known = sha256_text(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}")
    folder = user_cache() / "unpacked" / known
    with refusing_output(folder, "MEDISTILL_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [m for m in large if not (folder / m.filename).is_file()]
        if missing:
            needed, free = sum(m.file_size for m in missing), shutil.disk_usage(folder).free
            if needed > free:
                raise OutputError(
                    f"has {free // 2**20} MB free; {path.name} unpacks to {needed // 2**20} MB",
                    where=folder,
                    remedy="make room, or set MEDISTILL_CACHE to a folder that has it",
                )
            with Progress(f"unpacking {path.name} once", needed) as shown:
                for member in missing:
                    _unpack(archive, member, folder / member.filename, shown)
    return {member.filename.removesuffix(".npy"): read_array(folder / member.filename) for member in large}


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, shown: Progress) -> None:
    """One member into one file, which has its name only once it is whole."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
        try:
            with archive.open(member) as stream:
                while chunk := stream.read(2**24):
                    out.write(chunk)
                    shown.advance(len(chunk))
            out.flush()
            read_array(Path(out.name))  # a header that promises more than there is must not be kept
            Path(out.name).replace(target)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise


def _split(path: Path, name: str, arrays: dict[str, npt.NDArray[Any]]) -> Split:
    images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    where = f"{path}, {name}_images"
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"has shape {arrays[f'{name}_images'].shape}", where=where, allowed=LAYOUT)
    if images.dtype.kind not in "uif":
        raise DataError(f"has dtype {images.dtype}", where=where, allowed="integers or floats")
    where = f"{path}, {name}_labels"
    if labels.dtype.kind not in "ui":
        raise DataError(
            f"has dtype {labels.dtype}",
            where=where,
            allowed="integers 0 to classes - 1",
            remedy="convert the labels with .astype('int64') once you have made sure that they are class numbers",
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        raise DataError(
            f"has shape {labels.shape} beside {len(images)} images", where=where, allowed="one label an image"
        )
    patients = arrays.get(f"{name}_patients")
    if patients is not None:
        if patients.shape != (len(images),):
            raise DataError(
                f"has shape {patients.shape}", where=f"{path}, {name}_patients", allowed=f"({len(images)},)"
            )
        patients = (
            np.char.decode(patients, "utf-8", "replace") if patients.dtype.kind == "S" else patients.astype(str)
        )
    return Split(images, labels.astype(np.int64), patients)


def _describe(path: Path, arrays: dict[str, npt.NDArray[Any]], splits: dict[str, Split]) -> Description:
    multi = splits["train"].labels.ndim == 2
    count = splits["train"].labels.shape[1] if multi else int(max(0, splits["train"].labels.max())) + 1
    names = tuple(str(c) for c in range(count))
    if "class_names" in arrays:
        named = arrays["class_names"].ravel()
        names = tuple(
            str(n) for n in (np.char.decode(named, "utf-8", "replace") if named.dtype.kind == "S" else named)
        )
    return Description(path.stem, names, task="multi-label" if multi else "classification")
