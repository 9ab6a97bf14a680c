"""The contract of a reader, and the registry that finds readers.

A reader is one file with one class: what it reads, and how that becomes a data set. A data set is a table of
records (image, targets, patient, site) for each split; whatever a source does not say is None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from medistill.config import DataConfig
from medistill.data.dataset import Dataset
from medistill.registry import Registry


class Reader(ABC):
    """Base of all readers. Subclass, set the class variables, implement both methods, register.

    Attributes:
        name: short.
        accepts: what it reads, in words, for messages that list what can be read.
        order: readers of a lower number are asked first whether a source is theirs.
    """

    name: ClassVar[str]
    accepts: ClassVar[str]
    order: ClassVar[int] = 50

    @abstractmethod
    def matches(self, source: str, path: Path) -> bool:
        """Whether this reader reads that source; nothing of it is read yet but names and first bytes.

        Args:
            source: as the user gave it.
            path: the same as a path, which may not exist.
        """

    def wanted(self, config: DataConfig) -> bool:
        """Whether settings ask for this reader, where others read such sources, too; most are wanted unless labels
        come from an attribute.
        """
        return config.label_attribute is None

    @abstractmethod
    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        """Read it whole, large images into files (``medistill.data.arrays.empty``).

        Args:
            source, path: as for :meth:`matches`.
            config: what the user asks for; a reader needs only follow what it cannot do without, as ``size`` where
                images differ in size. Everything else is done after it.

        Raises:
            DataError: it cannot be read; one line that says where and what to do.
        """


_REGISTRY: Registry[type[Reader]] = Registry("reader", "medistill.data.readers", "medistill.readers")


def register_reader(reader: type[Reader]) -> type[Reader]:
    """Class decorator: make a reader known under its name.

    Raises:
        ConfigError: another reader has that name.
    """
    return _REGISTRY.add(reader.name, reader)


def readers() -> list[type[Reader]]:
    """Every reader in the order in which they are asked: ours, and those of installed packages (entry point
    ``medistill.readers``).
    """
    return sorted(_REGISTRY.all().values(), key=lambda reader: (reader.order, reader.name))


def reader_for(source: str, path: Path, config: DataConfig) -> Reader | None:
    """The first reader that is wanted and whose source it is; None where there is none."""
    every = (kind() for kind in readers())
    return next((reader for reader in every if reader.wanted(config) and reader.matches(source, path)), None)
