"""What every reader must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from medistill.config import DataConfig
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.data.reader import reader_for, readers


class ReaderConformance(ABC):
    """Tests that follow from the contract of a reader alone."""

    reader: ClassVar[str]

    @abstractmethod
    def make_source(self, folder: Path) -> str:
        """Write a source that the reader reads below an empty folder, and name it."""

    def test_the_source_is_its_own(self, tmp_path: Path) -> None:
        source = self.make_source(tmp_path)
        first = reader_for(source, Path(source).expanduser(), DataConfig())
        assert first is not None and first.name == self.reader and first.accepts

    def test_other_names_are_not(self, tmp_path: Path) -> None:
        tested = next(reader for reader in readers() if reader.name == self.reader)()
        for other in (str(tmp_path / "nothing"), "no-such-set"):
            assert not tested.matches(other, Path(other))

    def test_records_have_one_form(self, tmp_path: Path) -> None:
        dataset = load(self.make_source(tmp_path))
        for split in dataset.splits.values():
            assert split.images.ndim in (4, 5) and split.images.shape[1] in (1, 3)
            assert split.targets.shape == (len(split.images), dataset.task.outputs)
            assert split.targets.dtype == np.uint8
            for names in (split.patients, split.sites):
                assert names is None or names.shape == (len(split),)

    def test_reading_twice_gives_the_same(self, tmp_path: Path) -> None:
        source = self.make_source(tmp_path)
        assert load(source).fingerprint == load(source).fingerprint

    def test_it_can_be_prepared(self, tmp_path: Path) -> None:
        prepared = prepare(load(self.make_source(tmp_path)))
        assert prepared.train.pixels.dtype == np.uint8 and min(prepared.train.shape) >= 16
