"""The contract of a preprocessing step, and the registry that finds steps.

A step is one file with one class. It changes raw images, each by itself, before they get 8 bits. The manifest records
which steps were taken, with all their options, so images of another site are prepared in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator

from medistill.aliases import RawImages
from medistill.config import Settings, build
from medistill.data.arrays import blocks, empty, release
from medistill.errors import ConfigError, nearest
from medistill.registry import Registry

COPIES = 32
"""Bytes that a step takes on its way for each byte of an image, about: numbers of eight bytes, a few times."""


def _rising(percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles {low:g} to {high:g}; two numbers from 0 to 100, the lower first")
    return percentiles


Percentiles = Annotated[tuple[float, float], AfterValidator(_rising)]
"""A lower and an upper percentile."""


class Changed(NamedTuple):
    """What a step made of images.

    Args:
        images: as many, of the same channels and lengths in space.
        left: how many it left as they were, as there was nothing to go by.
    """

    images: RawImages
    left: int = 0


@dataclass(frozen=True)
class StepRecord:
    """A step that was taken, as a manifest records it: its name and every option."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Step(Settings, ABC):
    """Base of all steps. Subclass, set the class variables, add options as fields, implement :meth:`apply`, register.

    Attributes:
        name: short, as in settings and in the manifest.
        title: what it does, in words.
        reference: the paper or the function that it follows.
        keeps_units: whether intensities of more than 8 bits keep their unit; else they lie in [0, 1] afterwards.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str] = ""
    keeps_units: ClassVar[bool] = True

    @property
    def looks_at_training_images(self) -> bool:
        """Whether :meth:`fitted` looks at pixels, which a guarantee of privacy forbids."""
        return False

    def fitted(self, train: RawImages) -> Self:
        """The step with all that follows from training images (n, c, *spatial) among its options."""
        return self

    def told(self, train: RawImages) -> str:
        """A sentence on what the fitted step does to training images (n, c, *spatial); "" for none."""
        return ""

    def require(self, images: RawImages) -> None:
        """Refuse kinds of images that the step is not for.

        Raises:
            ConfigError: they are of such a kind.
        """

    @abstractmethod
    def apply(self, images: RawImages) -> Changed:
        """Change images.

        Args:
            images: (n, c, *spatial), a few at a time. What becomes of one must not depend on the others.

        Returns:
            Images of the same shape: ``uint8`` of ``uint8``, else float32.
        """

    @property
    def record(self) -> StepRecord:
        """What the manifest holds of it."""
        return StepRecord(self.name, self.model_dump(mode="json"))


_REGISTRY: Registry[type[Step]] = Registry("preprocessing step", "medistill.data.steps", "medistill.steps")


def register_step(step: type[Step]) -> type[Step]:
    """Class decorator: make a step known under its name.

    Raises:
        ConfigError: another one has that name.
    """
    return _REGISTRY.add(step.name, step)


def steps() -> dict[str, type[Step]]:
    """Every known step, sorted by name."""
    return _REGISTRY.all()


def make_step(record: StepRecord) -> Step:
    """A step from its name and options.

    Raises:
        ConfigError: an unknown step or option, or an option out of range.
    """
    known = steps()
    if record.name not in known:
        raise ConfigError(
            f"unknown step '{record.name}'", where="data.steps", allowed=", ".join(known),
            remedy=nearest(record.name, known),
        )  # fmt: skip
    return build(known[record.name], dict(record.options), f"data.steps, {record.name}")


def asked_steps(entries: Sequence[Mapping[str, Any]] | None) -> list[Step]:
    """The steps of ``data.steps``: names with options.

    Raises:
        ConfigError: as :func:`make_step`.
    """
    return [
        make_step(StepRecord(entry["name"], {k: v for k, v in entry.items() if k != "name"}))
        for entry in entries or ()
    ]


def stepped(images: RawImages, taken: Sequence[Step]) -> Changed:
    """Images after all steps, in that order, and how many images some step left as they were.

    Raises:
        ConfigError: a step is not for such images.
    """
    left = 0
    for step in taken:
        step.require(images)
        images, count = _after(images, step)
        left += count
    return Changed(images, left)


def _after(images: RawImages, step: Step) -> Changed:
    from medistill.parallel import Workers
    from medistill.runtime import usable_cores

    out, left, start = empty(images.shape, np.uint8 if images.dtype == np.uint8 else np.float32), 0, 0
    parts = (block for _, block in blocks(images, COPIES * images[:1].nbytes))
    for done in Workers(usable_cores()).map(step.apply, parts):
        end = start + len(done.images)
        out[start:end], start = done.images, end
        left += done.left
        release(out)
    return Changed(out, left)
