"""Data as a study sees them: fewer training images, other classes, wrong labels, all from one source."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from medistill.config import DataConfig
from medistill.data.arrays import take
from medistill.data.checks import require_usable
from medistill.data.dataset import Dataset, Split
from medistill.data.load import load
from medistill.errors import DataError
from medistill.evaluation.align import renamed
from medistill.files import canonical_json, sha256_text, user_cache, write_atomically
from medistill.keys import Key
from medistill.study.config import DataEntry


def read_entry(entry: DataEntry) -> Dataset:
    """The data of an entry, varied as it says. Validation and test images stay all that there are.

    Raises:
        DataError: the source cannot be read, or a class named in the entry does not exist.
    """
    dataset = load(entry.source, entry.data)
    require_usable(dataset)
    if not entry.varied:
        return dataset
    key = Key(entry.variation_seed).child("variation")
    if entry.classes:
        dataset = renamed(dataset, entry.classes)
        if dataset.classes < 2:
            raise DataError("fewer than two classes are left", where=entry.name)
    train = dataset.train
    if entry.images < 1:
        train = _fewer(train, entry.images, key.child("images"))
    if entry.label_noise:
        train = Split(train.images, _noisy(train.labels, dataset.classes, entry, key), train.patients)
    told = entry.model_dump(mode="json", include={"images", "classes", "label_noise", "variation_seed"})
    return dataset.with_note(f"varied for a study: {told}", {**dataset.splits, "train": train})


def _fewer(train: Split, share: float, key: Key) -> Split:
    rows = []
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        kept = max(1, round(share * len(members)))
        rows.append(key.child("class", int(label)).numpy().permutation(members)[:kept])
    return train.take(np.sort(np.concatenate(rows)))


def _noisy(labels: npt.NDArray[np.int64], classes: int, entry: DataEntry, key: Key) -> npt.NDArray[np.int64]:
    rng = key.child("label noise").numpy()
    wrong = rng.permutation(len(labels))[: round(entry.label_noise * len(labels))]
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return changed


def data_identity(entry: DataEntry, dataset: Dataset) -> str:
    """Hash of content, class names and the way of preparing them: what distilling sees of the data."""
    described = dataset.description
    told = {
        "content": dataset.fingerprint["sha256"],
        "classes": list(described.class_names),
        "flips": described.flips,
        "prepared": entry.data.model_dump(mode="json", include={"size", "channels"}),
    }
    return sha256_text(canonical_json(told))


def read_planned(entry: DataEntry, identity: str) -> Dataset:
    """The data of an entry as they were when the study was planned.

    Raises:
        DataError: they changed since.
    """
    dataset = read_entry(entry)
    if data_identity(entry, dataset) != identity:
        raise DataError("changed since the study was planned", where=entry.source, remedy="run the study again")
    return dataset


def also_renamed(entry: DataEntry, classes: dict[str, str | None]) -> DataEntry:
    """The entry with its classes, as it calls them, renamed once more."""
    if not classes:
        return entry
    renamed(read_entry(entry), classes)  # says what is wrong with the names
    names = load(entry.source, entry.data).description.class_names
    first = {name: entry.classes.get(name, name) for name in names}
    both = {name: None if now is None else classes.get(now, now) for name, now in first.items()}
    return entry.model_copy(update={"classes": both})


def as_source(entry: DataEntry, dataset: Dataset) -> tuple[str, DataConfig]:
    """What ``distill`` is given for an entry that was read: its source, or a file of the varied data."""
    if not entry.varied:
        return entry.source, entry.data
    path = user_cache() / "study-data" / data_identity(entry, dataset) / f"{_file_name(entry.name)}.npz"
    if not path.exists():
        write_atomically(path, _npz(dataset))
    described = dataset.description
    told = {"licence": described.licence, "source": described.source, "flips": described.flips}
    return str(path), entry.data.model_copy(update={**told, "class_names": described.class_names})


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _npz(dataset: Dataset) -> bytes:
    arrays: dict[str, npt.NDArray[np.generic]] = {"class_names": np.array(dataset.description.class_names)}
    for name, split in dataset.splits.items():
        images = take(split.images, np.arange(len(split)))
        arrays[f"{name}_images"] = images[..., 0] if images.shape[3] == 1 else images
        arrays[f"{name}_labels"] = split.labels
        if split.patients is not None:
            arrays[f"{name}_patients"] = split.patients
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
