"""MedMNIST-layout arrays: ``{train,val,test}_images`` and ``{train,val,test}_labels``, in an ``.npz`` or as ``.npy``.

Large arrays stay in files: a folder of ``.npy`` files is mapped as it is, large images in an
``.npz`` are unpacked once into the user's cache.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from medistill.config import DataConfig
from medistill.data.arrays import LARGE, read_array
from medistill.data.catalogue import describe_by_stem
from medistill.data.dataset import SPLITS, Dataset, Description, Names, Split
from medistill.data.reader import Reader, register_reader
from medistill.errors import ConfigError, DataError, MedistillError, nearest
from medistill.files import refusing_output, require_room, sha256_text, user_cache
from medistill.progress import Progress
from medistill.tasks.task import Task, inferred_task, make_task

LAYOUT = (
    "train_images (n, h, w), (n, h, w, 3) or volumes (n, d, h, w), and train_labels (n,) or (n, 1), or (n, k) zeros "
    "and ones of k findings; the same for val and test"
)
KEYS = frozenset(
    [f"{split}_{part}" for split in SPLITS for part in ("images", "labels", "patients", "sites")]
    + ["class_names", "task"]
)

IMAGES = frozenset(f"{split}_images.npy" for split in SPLITS)


def read_npz(path: Path, description: Description | None = None) -> Dataset:
    """Read a MedMNIST-layout file of any image size, gray or RGB.

    Optional extra keys: ``{split}_patients`` and ``{split}_sites`` (n,) name each image's patient and site,
    ``class_names`` (outputs,) names classes or findings, ``task`` is their kind, as "ordinal". Nothing in the file is
    unpickled.

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
    labels: dict[str, npt.NDArray[Any]] = {}
    for name in SPLITS:
        if f"{name}_images" in arrays and f"{name}_labels" not in arrays:
            raise DataError(f"has '{name}_images' without '{name}_labels'", where=path, allowed=LAYOUT)
        if f"{name}_images" in arrays and arrays[f"{name}_images"].size:
            labels[name] = _labels(path, name, arrays)
    if "train" not in labels:
        raise DataError("holds no training image", where=f"{path}, train_images", allowed=LAYOUT)
    _require_one_kind(path, labels)
    task = description.task if description else _task(path, arrays, labels["train"])
    splits = {name: _split(path, name, arrays, split_labels, task) for name, split_labels in labels.items()}
    return Dataset(splits, description or Description(path.stem, task))


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
                reason = "holds pickled objects, which are never opened" if pickled else "is no readable .npy file"
                raise DataError(reason, where=path, allowed=LAYOUT, remedy="write it with numpy.save") from problem
    return _dataset(folder, arrays, [path.stem for path in folder.glob("*.npy")], None)


def _require_one_kind(path: Path, labels: dict[str, npt.NDArray[Any]]) -> None:
    train = labels["train"]
    for name, split_labels in labels.items():
        if split_labels.shape[1:] != train.shape[1:]:
            raise DataError(
                f"has shape {split_labels.shape}",
                where=f"{path}, {name}_labels",
                allowed=f"labels like train_labels {train.shape}",
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
            reason = "is a single array, not an .npz archive" if single else "is not a readable .npz archive"
            raise DataError(reason, where=path, allowed=LAYOUT, remedy="write it with numpy.savez")
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
        reason = "holds pickled objects, which are never opened" if pickled else "is not a readable .npz archive"
        raise DataError(reason, where=path, allowed=LAYOUT, remedy="write it with numpy.savez") from problem


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
    digest = sha256_text(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}")
    folder = user_cache() / "unpacked" / digest
    with refusing_output(folder, "MEDISTILL_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [m for m in large if not (folder / m.filename).is_file()]
        if missing:
            needed = sum(m.file_size for m in missing)
            require_room(folder, needed, path)
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


def _images(path: Path, name: str, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The images of a split as (n, c, *spatial), a view of what was read."""
    images = arrays[f"{name}_images"]
    where = f"{path}, {name}_images"
    if images.dtype.kind not in "uif":
        raise DataError(f"has dtype {images.dtype}", where=where, allowed="integers or floats")
    volumes = images.ndim == 5 or (images.ndim == 4 and images.shape[3] not in (1, 3))
    if volumes and images.ndim == 4 and images.shape[1] in (1, 3):
        raise DataError(
            f"has shape {images.shape}", where=where, allowed=LAYOUT,
            remedy="if the channels come first, move them: numpy.moveaxis(images, 1, -1)",
        )  # fmt: skip
    if (images.ndim == 4 and images.shape[3] in (2, 4)) or (images.ndim == 5 and images.shape[4] in (2, 4)):
        colours = images.shape[-1] - 1
        raise DataError(
            f"has shape {images.shape}: {colours} and transparency", where=where, allowed=LAYOUT,
            remedy=f"if the last is transparency, leave it out: images[..., :{colours}]",
        )  # fmt: skip
    if images.ndim == 5 and images.shape[4] not in (1, 3) and images.shape[1] in (1, 3):
        raise DataError(
            f"has shape {images.shape}", where=where, allowed=LAYOUT,
            remedy="if the channels come first, move them: numpy.moveaxis(images, 1, -1)",
        )  # fmt: skip
    if images.ndim == 3 or (volumes and images.ndim == 4):
        images = images[..., None]
    if images.ndim not in (4, 5) or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise DataError(f"has shape {arrays[f'{name}_images'].shape}", where=where, allowed=LAYOUT)
    return np.moveaxis(images, -1, 1)


def _labels(path: Path, name: str, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    labels, count = arrays[f"{name}_labels"], len(_images(path, name, arrays))
    where = f"{path}, {name}_labels"
    several = _kind(arrays) == "multi-label"
    if labels.dtype.kind not in ("uib" if several or (labels.ndim == 2 and labels.shape[1] > 1) else "ui"):
        words = "number them alike in every split: names = numpy.unique(train_labels), then " + (
            "numpy.searchsorted(names, labels), and save names as class_names"
        )
        numbers = "convert the labels with .astype('int64') once you have made sure that they are class numbers"
        raise DataError(
            f"has dtype {labels.dtype}", where=where, allowed="integers 0 to classes - 1",
            remedy=words if labels.dtype.kind in "US" else numbers,
        )  # fmt: skip
    if labels.ndim == 2 and labels.shape[1] == 1 and not several:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise DataError(f"has shape {labels.shape} beside {count} images", where=where, allowed="one label an image")
    return labels.astype(np.int64)


def _split(path: Path, name: str, arrays: dict[str, npt.NDArray[Any]], labels: npt.NDArray[Any], task: Task) -> Split:
    try:
        targets = task.targets(labels)
    except DataError as problem:
        place = "" if str(problem).startswith("[") else " "
        raise DataError(f"{name}_labels{place}{problem}", where=path) from problem
    patients, sites = (_names(path, f"{name}_{kind}", arrays, len(labels)) for kind in ("patients", "sites"))
    return Split(_images(path, name, arrays), targets, patients, sites)


def _names(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]], count: int) -> Names | None:
    names = arrays.get(key)
    if names is None:
        return None
    if names.shape != (count,):
        raise DataError(f"has shape {names.shape}", where=f"{path}, {key}", allowed=f"({count},)")
    return np.char.decode(np.char.encode(_text(names), "utf-8", "replace"), "utf-8")  # what has no UTF-8 is replaced


def _text(array: npt.NDArray[Any]) -> Names:
    return np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array.astype(str)


def _kind(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    """The kind of task that the file names; "" where it names none in its entry."""
    if "task" not in arrays:
        return None
    return str(_text(arrays["task"].ravel())[0]) if arrays["task"].size else ""


def _task(path: Path, arrays: dict[str, npt.NDArray[Any]], train: npt.NDArray[Any]) -> Task:
    """The task that the file names, else the one that its labels have by themselves."""
    count = train.shape[1] if train.ndim == 2 else int(max(0, train.max())) + 1
    names = [str(c) for c in range(count)]
    if "class_names" in arrays:
        names = _text(arrays["class_names"].ravel()).tolist()
    if train.ndim == 2 and len(names) != count:
        raise DataError(
            f"has {len(names)} names for {count} columns of labels", where=f"{path}, class_names",
            allowed="one name for each finding",
        )  # fmt: skip
    kind = _kind(arrays)
    if kind is None:
        return inferred_task(train, names)
    try:
        return make_task(kind, names)
    except ConfigError as problem:
        raise DataError(str(problem), where=f"{path}, task") from problem


@register_reader
class NpyFolderReader(Reader):
    """A folder of ``.npy`` files."""

    name: ClassVar[str] = "npy-folder"
    accepts: ClassVar[str] = "a folder of .npy files in MedMNIST layout"
    order: ClassVar[int] = 10

    def matches(self, source: str, path: Path) -> bool:
        return path.is_dir() and holds_arrays(path)

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return read_npy_folder(path)


@register_reader
class NpzReader(Reader):
    """An ``.npz`` file."""

    name: ClassVar[str] = "npz"
    accepts: ClassVar[str] = "an .npz in MedMNIST layout"
    order: ClassVar[int] = 30

    def matches(self, source: str, path: Path) -> bool:
        return (path.is_file() and zipfile.is_zipfile(path)) or path.suffix.lower() == ".npz"

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return describe_by_stem(path, read_npz(path))
