"""Data as a study sees them: fewer training images, other classes, wrong labels, all from one source."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Targets
from medistill.config import DataConfig
from medistill.data.align import renamed
from medistill.data.arrays import take
from medistill.data.checks import require_usable
from medistill.data.dataset import Dataset, Split
from medistill.data.load import load
from medistill.data.sampling import draw_by_stratum
from medistill.errors import DataError
from medistill.files import canonical_json, sha256_text, user_cache, write_atomically
from medistill.keys import Key
from medistill.study.config import DataEntry
from medistill.tasks.task import Task


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
        if dataset.task.outputs < 2:
            raise DataError("fewer than two classes are left", where=entry.name)
    train = dataset.train
    if entry.images < 1:
        train = _fewer(train, dataset.task, entry.images, key.child("images"))
    if entry.label_noise:
        train = replace(train, targets=_noisy(train.targets, dataset.task, entry, key))
    how = entry.model_dump(mode="json", include={"images", "classes", "label_noise", "variation_seed"})
    return dataset.with_note(f"varied for a study: {how}", {**dataset.splits, "train": train})


def _fewer(train: Split, task: Task, share: float, key: Key) -> Split:
    membership = task.membership(train.targets)
    kept = [max(1, round(share * int(n))) if n else 0 for n in membership.sum(axis=0)]
    drawn = draw_by_stratum(membership, kept, lambda s: key.child("class", s))
    return train.take(np.sort(np.concatenate(drawn)))


def _noisy(targets: Targets, task: Task, entry: DataEntry, key: Key) -> Targets:
    """Targets of which a share is that of another class; each finding is turned into its opposite instead."""
    rng = key.child("label noise").numpy()
    wrong = rng.permutation(len(targets))[: round(entry.label_noise * len(targets))]
    changed = targets.copy()
    if task.exclusive:
        others = rng.integers(1, task.outputs, len(wrong))
        changed[wrong] = [np.roll(row, other) for row, other in zip(targets[wrong], others, strict=True)]
    else:
        changed[wrong] = 1 - targets[wrong]
    return changed


def data_identity(entry: DataEntry, dataset: Dataset) -> str:
    """Hash of content, class names and the way of preparing them: what distilling sees of the data."""
    described = dataset.description
    content = {
        "content": dataset.fingerprint["sha256"],
        "task": described.task.kind,
        "classes": list(described.class_names),
        "flips": described.flips,
        "prepared": entry.data.model_dump(mode="json", include={"size", "channels", "steps", "bits"}),
    }
    return sha256_text(canonical_json(content))


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
    how: Json = {"licence": described.licence, "source": described.source, "flips": described.flips}
    how |= {"task": described.task.kind, "class_names": described.class_names}
    return str(path), entry.data.model_copy(update=how)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _npz(dataset: Dataset) -> bytes:
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "class_names": np.array(dataset.description.class_names), "task": np.array(dataset.task.kind),
    }  # fmt: skip
    for name, split in dataset.splits.items():
        images = take(split.images, np.arange(len(split)))
        last = np.moveaxis(images, 1, -1)
        arrays[f"{name}_images"] = last[..., 0] if last.shape[-1] == 1 else last
        arrays[f"{name}_labels"] = dataset.task.labels(split.targets)
        for kind, names in (("patients", split.patients), ("sites", split.sites)):
            if names is not None:
                arrays[f"{name}_{kind}"] = names
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
