"""One way in: a path, a MedMNIST name or a phantom becomes a :class:`Dataset`."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

from medistill.config import DataConfig
from medistill.data.dataset import Dataset
from medistill.data.split import complete
from medistill.errors import ConfigError, DataError
from medistill.keys import Key

SOURCES = "a MedMNIST-layout .npz or folder of .npy files, a folder of class folders, a MedMNIST name, or phantom"


def load(source: str | Path, config: DataConfig | None = None, complete_splits: bool = True) -> Dataset:
    """Read a data set from wherever it is and complete its splits.

    Args:
        source: path of an ``.npz`` in MedMNIST layout, or of a folder with its arrays as ``.npy`` files, which
            are mapped; folder of class folders; MedMNIST name
            such as ``pathmnist`` or ``pathmnist_64``; ``phantom`` or ``phantom:classes=3,site=b``.
        config: size, channels, class names and flip safety to use instead of the source's own.
        complete_splits: split off val and test where the source has none.

    Raises:
        DataError: the source does not exist or cannot be read.
        ConfigError: a setting is unknown or contradicts the data.
    """
    config = config or DataConfig()
    dataset = _describe(_read(str(source), config), config)
    return complete(dataset, Key(config.split_seed)) if complete_splits else dataset


def _read(source: str, config: DataConfig) -> Dataset:
    try:
        path = Path(source).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as problem:  # a name too long, a home that there is not
        raise DataError(f"is no usable path ({problem})", where=source[:80], allowed=SOURCES) from problem
    if path.is_dir():
        from medistill.data.folders import read_folder
        from medistill.data.npz import holds_arrays, read_npy_folder

        if holds_arrays(path):
            return read_npy_folder(path)

        return read_folder(path, config.size, config.channels)
    if path.is_file() and path.suffix.lower() != ".npz" and not zipfile.is_zipfile(path):
        raise DataError("is no kind of file that is read", where=path, allowed=SOURCES)
    if path.is_file() or path.suffix == ".npz":
        from medistill.data.medmnist import describe_by_stem
        from medistill.data.npz import read_npz

        return describe_by_stem(path, read_npz(path))
    if source.split(":")[0] == "phantom":
        from medistill.data.phantom import make_phantom, parse_phantom

        return make_phantom(parse_phantom(source))
    from medistill.data.medmnist import parse_name, read_medmnist, suggest

    if parse_name(source) is None:
        raise DataError("no such file, folder or set", where=source, allowed=SOURCES, remedy=suggest(source))
    return read_medmnist(source)


def _describe(dataset: Dataset, config: DataConfig) -> Dataset:
    # A file name may hold bytes that no text has.
    name = dataset.description.name.encode("utf-8", "replace").decode()
    changes: dict[str, object] = {} if name == dataset.description.name else {"name": name}
    if config.class_names is not None:
        if len(config.class_names) < dataset.classes:
            raise ConfigError(
                f"{len(config.class_names)} names for {dataset.classes} classes",
                where="data.class_names",
                allowed="one name per class number",
            )
        changes["class_names"] = config.class_names
    for key in ("flips", "licence", "source"):
        if getattr(config, key) is not None:
            changes[key] = getattr(config, key)
    return Dataset(dataset.splits, replace(dataset.description, **changes)) if changes else dataset  # type: ignore[arg-type]
