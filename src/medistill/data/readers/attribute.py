"""DICOM files whose class is an attribute of their headers, as ``--set data.label_attribute=BodyPartExamined``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from medistill.config import DataConfig
from medistill.data.dataset import Dataset
from medistill.data.dicom import attribute, require_attribute
from medistill.data.pictures import is_picture_file
from medistill.data.reader import Reader, register_reader
from medistill.data.readers.folder import walk
from medistill.data.readers.table import MANY_LABELS, read_rows
from medistill.data.reading import headers
from medistill.data.table import LabelTable
from medistill.errors import DataError
from medistill.runtime import usable_cores


@register_reader
class AttributeReader(Reader):
    """A folder of DICOM files, in any subfolders; what others are in it has no label and is left out and counted."""

    name: ClassVar[str] = "attribute"
    accepts: ClassVar[str] = "a folder of DICOM files with data.label_attribute"
    order: ClassVar[int] = 10

    def matches(self, source: str, path: Path) -> bool:
        return path.is_dir()

    def wanted(self, config: DataConfig) -> bool:
        return config.label_attribute is not None

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        name = config.label_attribute or ""
        require_attribute(name)
        files = sorted(filter(is_picture_file, walk(path)))
        words = list(headers(files, partial(attribute, name=name), usable_cores()))
        values = {word for word in words if word}
        if len(values) > max(MANY_LABELS, len(words) // 2):
            raise DataError(
                f"has {len(values)} different values in {len(words)} files", where=f"{path}, {name}",
                allowed="an attribute whose value is a class",
            )  # fmt: skip
        if not values:
            raise DataError(
                f"holds {len(files)} images, none with a value of {name}", where=path,
                allowed="DICOM files that have the attribute data.label_attribute",
            )  # fmt: skip
        table = LabelTable(path, {name: words}, {"label": name})
        return read_rows(table, path, {file: row for row, file in enumerate(files)}, config, [])
