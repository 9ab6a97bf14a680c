"""The contract of an audit check, and the registry that finds checks.

A check is one file with one class. It is given a package, images that the package was made from (members) and
images that took no part (non-members), and returns one :class:`~medistill.package.finding.Finding`. The manifest, the
card, the report and the commands show findings without knowing which check they come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medistill.aliases import Pixels, Targets
from medistill.config import Settings
from medistill.data.preprocess import PreparedDataset, TensorSplit
from medistill.errors import MedistillError
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package
from medistill.registry import Registry


@dataclass(frozen=True)
class Population:
    """Real images as prepared for the package, and whose they are.

    Args:
        pixels: arrays (n, c, *spatial) ``uint8`` at the size that networks see, one after the other; may lie in
            files.
        targets: (n, outputs) of all of them.
        patients, sites: (n,) strings, or None where unknown.
    """

    pixels: Sequence[Pixels]
    targets: Targets
    patients: npt.NDArray[np.str_] | None = None
    sites: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def split(self) -> TensorSplit:
        """All of them as a training set."""
        whole = self.pixels[0] if len(self.pixels) == 1 else np.concatenate(list(self.pixels))
        return TensorSplit(whole, self.targets)

    def at(self, rows: npt.NDArray[np.intp]) -> Pixels:
        """The images of those rows, in ascending order; only these are fetched where images lie in files."""
        starts = np.cumsum([0, *(len(part) for part in self.pixels)])
        pairs = zip(self.pixels, starts, strict=False)
        return np.concatenate([part[rows[(rows >= s) & (rows < s + len(part))] - s] for part, s in pairs])

    def without(self, patients: npt.NDArray[np.str_] | None) -> Population:
        """Those images that are of none of these patients; all, where patients are not known."""
        if patients is None or self.patients is None:
            return self
        return self.only(~np.isin(self.patients, patients))

    def only(self, kept: npt.NDArray[np.bool_]) -> Population:
        """Those images, (n,) true."""
        if kept.all():
            return self
        starts = np.cumsum([0, *(len(part) for part in self.pixels)])
        return Population(
            [part[kept[start : start + len(part)]] for part, start in zip(self.pixels, starts, strict=False)],
            self.targets[kept],
            None if self.patients is None else self.patients[kept],
            None if self.sites is None else self.sites[kept],
        )

    @classmethod
    def of(cls, prepared: PreparedDataset, names: Sequence[str]) -> Population:
        """Those splits of a data set together."""
        raw = [prepared.dataset.splits[name] for name in names]
        targets = [split.targets for split in raw] or [np.zeros((0, prepared.task.outputs), dtype=np.uint8)]
        return cls(
            [prepared.splits[name].pixels for name in names],
            np.concatenate(targets),
            _joined([split.patients for split in raw]),
            _joined([split.sites for split in raw]),
        )


def _joined(names: Sequence[npt.NDArray[np.str_] | None]) -> npt.NDArray[np.str_] | None:
    present = [part for part in names if part is not None]
    return np.concatenate(present) if present and len(present) == len(names) else None


def populations(prepared: PreparedDataset) -> tuple[Population, Population]:
    """Members (training images) and non-members (validation and test images, perhaps none) of a data set."""
    others = [name for name in prepared.splits if name != "train"]
    return Population.of(prepared, ["train"]), Population.of(prepared, others)


class NotMeasuredError(MedistillError):
    """A check has nothing to go by, as labels that nobody gave; the message says what."""


class Audit(Settings, ABC):
    """Base of all checks. Subclass, set the class variables, add options as fields, implement :meth:`run`, register.

    Attributes:
        name: short, as in the manifest.
        title: in words.
        reference: the paper or the place where the check is explained.
        when_packing: whether it takes seconds, so that it is run whenever a package is made.
        needs_training_data: whether it looks at members and non-members; others look at the package alone, which a
            recipient can do too.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str] = ""
    when_packing: ClassVar[bool] = False
    needs_training_data: ClassVar[bool] = True

    progress: bool = Field(False, exclude=True, description="show progress on standard error")

    def seconds(self, package: Package, members: Population, key: Key) -> float:
        """How long :meth:`run` takes on this machine, about, where nothing is kept; 0 for what takes seconds."""
        return 0.0

    @abstractmethod
    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        """Measure.

        Args:
            package: what would be sent.
            members: the images that it was made from; none where the training data are not at hand.
            non_members: images of the same kind that took no part; may be empty.
            key: all randomness of the check.

        Raises:
            NotMeasuredError: there is nothing to measure by.
        """


_REGISTRY: Registry[type[Audit]] = Registry("audit check", "medistill.audits.checks", "medistill.audits")


def register_audit(check: type[Audit]) -> type[Audit]:
    """Class decorator: make a check known under its name.

    Raises:
        ConfigError: another check has that name.
    """
    return _REGISTRY.add(check.name, check)


def audits() -> dict[str, type[Audit]]:
    """Every check by name: ours, and those of installed packages (entry point ``medistill.audits``)."""
    return _REGISTRY.all()


def audit_key(seed: int, check: Audit) -> Key:
    """The randomness of a check of a package with that seed."""
    return Key(seed).child("audit", check.name)


def audit_when_packing(package: Package, prepared: PreparedDataset, seed: int) -> list[Finding]:
    """Findings of the checks that take seconds, for a package that is about to be written."""
    members, non_members = populations(prepared)
    checks = [check() for check in audits().values() if check.when_packing]
    return [check.run(package, members, non_members, audit_key(seed, check)) for check in checks]
