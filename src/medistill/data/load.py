"""One way in: a path, a MedMNIST name or a phantom becomes a :class:`Dataset`."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

from medistill.config import DataConfig
from medistill.data.align import by_their_numbers, reordered, require_no_names_swapped
from medistill.data.catalogue import suggest
from medistill.data.dataset import Dataset
from medistill.data.reader import reader_for, readers
from medistill.data.split import complete
from medistill.data.step import asked_steps
from medistill.errors import ConfigError, DataError
from medistill.keys import Key
from medistill.tasks.task import retasked


def sources() -> str:
    """What can be read, in words."""
    return ", ".join(reader.accepts for reader in readers())


def load(
    source: str | Path, config: DataConfig | None = None, complete_splits: bool = True, test_alone: bool = False
) -> Dataset:
    """Read a data set from wherever it is and complete its splits.

    Args:
        source: path of an ``.npz`` in MedMNIST layout, or of a folder with its arrays as ``.npy`` files, which
            are mapped; folder of class folders; table of labels beside images; MedMNIST name
            such as ``pathmnist`` or ``pathmnist_64``; ``phantom`` or ``phantom:classes=3,site=b``.
        config: size, channels, task, class names and flip safety to use instead of the source's own.
        complete_splits: split off val and test where the source has none.
        test_alone: accept a source of test images alone, which are called "train" then, as the only split is.

    Raises:
        DataError: the source does not exist or cannot be read.
        ConfigError: a setting is unknown or contradicts the data.
    """
    config = config or DataConfig()
    asked_steps(config.steps)  # what is wrong about them is told before anything is read
    dataset = _describe(_read(str(source), config), config)
    if config.spacing is not None and dataset.description.spacing is None:
        raise ConfigError(
            f"{config.spacing:g}, of images that say no spacing of their own", where="data.spacing",
            allowed="DICOM or NIfTI files, whose headers say it",
        )  # fmt: skip
    if "train" not in dataset.splits:
        if not test_alone:
            raise DataError(
                "has test images alone", where=source, allowed="training images",
                remedy="`medistill train PACKAGE --on` needs test images alone; all else needs training images",
            )  # fmt: skip
        dataset = Dataset({"train": dataset.splits["test"]}, dataset.description)
    if not complete_splits:
        return dataset
    return complete(dataset, Key(config.split_seed), config.split, config.test_site)


def _read(source: str, config: DataConfig) -> Dataset:
    try:
        path = Path(source).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as problem:  # a name too long, a home that there is not
        raise DataError(f"is no usable path ({problem})", where=source[:80], allowed=sources()) from problem
    if (reader := reader_for(source, path, config)) is not None:
        return reader.read(source, path, config)
    if config.label_attribute is not None:
        raise ConfigError(
            f"{config.label_attribute}, of {source}", where="data.label_attribute",
            allowed="a folder of DICOM files, or a .zip of one",
        )  # fmt: skip
    if path.is_file():
        raise DataError("is no kind of file that is read", where=path, allowed=sources())
    raise DataError("no such file, folder or set", where=source, allowed=sources(), remedy=suggest(source))


def _describe(dataset: Dataset, config: DataConfig) -> Dataset:
    # A file name may hold bytes that no text has.
    name = dataset.description.name.encode("utf-8", "replace").decode()
    changes: dict[str, object] = {} if name == dataset.description.name else {"name": name}
    task = dataset.task
    # One name is written one way, however a file system or a spreadsheet composes its letters.
    composed = tuple(unicodedata.normalize("NFC", name) for name in task.class_names)
    task = task if composed == task.class_names else task.renamed(composed)
    if config.class_names is not None:
        if len(config.class_names) != task.outputs:
            raise ConfigError(
                f"{len(config.class_names)} names for {task.outputs} {task.plural}",
                where="data.class_names",
                allowed=f"one name for each {task.noun}",
            )
        ordered = reordered(dataset, config.class_names)
        if ordered is dataset:
            require_no_names_swapped(config.class_names, task.class_names)
        dataset, task = ordered, ordered.task.renamed(config.class_names)
    if config.task is not None and config.task != task.kind:
        task = retasked(task, {split: part.targets for split, part in dataset.splits.items()}, config.task)
    if task.ordered and config.class_names is None and dataset.train.files is not None:
        # Names of folders and in tables were sorted as words, which says nothing of grades.
        numbered = by_their_numbers(task.class_names)
        changes["order_stated"] = numbered is not None
        if numbered is not None:
            dataset = reordered(Dataset(dataset.splits, replace(dataset.description, task=task)), numbered)
            task = dataset.task
    if task != dataset.task:
        changes["task"] = task
    for key in ("name", "flips", "licence", "source"):
        if getattr(config, key) is not None:
            changes[key] = getattr(config, key)
    return Dataset(dataset.splits, replace(dataset.description, **changes)) if changes else dataset  # type: ignore[arg-type]
