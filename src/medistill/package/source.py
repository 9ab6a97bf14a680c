"""Reading a data set the way a package needs it: its size, its channels, its class numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medistill.config import DataConfig, build
from medistill.data.align import align, renamed, reordered
from medistill.data.dataset import Dataset
from medistill.data.load import load
from medistill.data.preprocess import MINIMUM_SIDE
from medistill.data.split import complete
from medistill.errors import DataError
from medistill.keys import Key
from medistill.package.package import Package


def load_for(
    package: Package,
    on: str | Path,
    complete_splits: bool = True,
    classes: Mapping[str, str | None] | None = None,
) -> tuple[Dataset, list[str]]:
    """Read a data set whose images may have any size, and number its classes like the package's.

    Args:
        package: what the data will be used with.
        on: the data set.
        complete_splits: split off val and test where the source has none. The package's own
            source is always split as it was for distilling, so that nobody tests on what was
            distilled.
        classes: what the data's classes are called in the package, by the data's names; None leaves one out.

    Returns:
        The data set, and notes on how classes were matched.

    Raises:
        DataError: it cannot be read, or its classes are not the package's; or there is nothing to rename.
    """
    config = data_config(package)
    try:
        raw = load(on, config, complete_splits=False, test_alone=not complete_splits)
    except DataError:
        if config.columns is None:
            raise
        # Another table may call its columns otherwise.
        config = config.model_copy(update={"columns": None})
        raw = load(on, config, complete_splits=False, test_alone=not complete_splits)
    raw = _in_order(raw, package)
    completed = _completed(raw, config)
    if not is_source(package, completed) and MINIMUM_SIDE in package.preprocessing.image.shape:
        completed = _not_enlarged(package, on, config, completed, not complete_splits)
    if is_source(package, completed):
        flips = package.manifest.image.flips
        if classes:
            raise DataError(
                "are the package's own data", where=on, allowed="other data, whose classes may be renamed"
            )
        described = replace(completed.description, task=package.task, flips=flips)
        return Dataset(completed.splits, described), []
    there = completed if complete_splits else raw
    return align(renamed(there, classes) if classes else there, package.task)


def _completed(raw: Dataset, config: DataConfig) -> Dataset:
    """Split as for distilling; a site that was held out need not be among another's."""
    sites = {str(site) for part in raw.splits.values() if part.sites is not None for site in part.sites}
    return complete(
        raw, Key(config.split_seed), config.split, config.test_site if config.test_site in sites else None
    )


def _in_order(raw: Dataset, package: Package) -> Dataset:
    """Classes in the package's order before anything is split, as when it was made."""
    ordered = reordered(raw, package.task.class_names)
    return Dataset(ordered.splits, replace(ordered.description, order_stated=True))


def _not_enlarged(
    package: Package, on: str | Path, config: DataConfig, enlarged: Dataset, test_alone: bool
) -> Dataset:
    """The data as they were before folders of smaller images were brought to the package's size."""
    try:
        raw = load(on, config.model_copy(update={"size": None, "channels": None}), False, test_alone)
    except DataError:  # of several sizes: they were brought to one for distilling too
        return enlarged
    return _completed(_in_order(raw, package), config)


def is_source(package: Package, dataset: Dataset) -> bool:
    """Whether the package was made from these very data."""
    return bool(package.source is not None and dataset.fingerprint["sha256"] == package.source)


def data_config(package: Package) -> DataConfig:
    """How to read data for a package: its images' size and channels, its task, its seed of splits."""
    image, configuration = package.preprocessing.image, package.manifest.provenance.configuration
    window = configuration.data.window
    values = {
        "size": image.shape,
        "channels": 1 if image.channels == 1 else 3,
        "split_seed": configuration.data.split_seed,
        "split": configuration.data.split,
        "test_site": configuration.data.test_site,
        "window": None if window is None else (window[0], window[1]),
        "statistics": configuration.data.statistics,
        "steps": None if configuration.data.steps is None else tuple(configuration.data.steps),
        "unreadable": configuration.data.unreadable,
        "columns": configuration.data.columns,
        "spacing": configuration.data.spacing,
        "label_attribute": configuration.data.label_attribute,
        "slices": configuration.data.slices,
        "bits": package.manifest.image.bits,
        "task": package.task.kind if configuration.data.task is not None else None,
    }
    return build(DataConfig, values, "how the package's data were read")
