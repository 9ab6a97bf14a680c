"""The manifest's section about images, and what all sections share."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from medistill.data.image import Flips, ImageSpec, Normalisation
from medistill.data.preprocess import Preprocessing
from medistill.data.step import StepRecord

LARGEST_IMAGE = 2**27
"""Numbers of an image that are believed at most, at the size that networks see."""


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("unprintable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Intensity = Annotated[float, Field(ge=-1e12, le=1e12)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=1)]
"""Preprocessing makes none under 1/255."""

Lengths = Annotated[list[Annotated[int, Field(ge=16, le=4096)]], Field(min_length=2, max_length=3)]
StoredLengths = Annotated[list[Annotated[int, Field(ge=8, le=4096)]], Field(min_length=2, max_length=3)]


class Section(BaseModel):
    """Unknown keys are kept: a later release may add some that this one need not understand."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


Option = bool | int | Intensity | Name | None | Annotated[list[Intensity], Field(max_length=100)]


class StepSection(Section):
    """A step of preprocessing that was taken, see :class:`medistill.data.step.Step`."""

    name: Name
    options: Annotated[dict[Name, Option], Field(max_length=50)] = Field(default_factory=dict)


class ImageSection(Section):
    """What images are, as stored and as networks see them.

    Args:
        channels, shape: as networks see them; stored smaller they are enlarged linearly.
        stored_shape: as they are stored.
        dtype, window, spacing: as the originals were, see :class:`medistill.data.image.ImageSpec`.
        mean, std, flips: see :class:`medistill.data.image.Normalisation`.
        bits: of a stored pixel.
        steps: what was done to originals before they got their size and depth, in order.
        explained: how pixels were made and are used, in words.
    """

    channels: Annotated[int, Field(ge=1, le=3)]
    shape: Lengths
    stored_shape: StoredLengths
    dtype: Name
    window: Annotated[list[Intensity], Field(min_length=2, max_length=2)]
    spacing: list[Annotated[float, Field(gt=0, le=1e6)]] | None = None
    mean: list[Mean]
    std: list[Deviation]
    flips: Flips
    bits: Literal[8, 16] = 8
    steps: Annotated[list[StepSection], Field(max_length=32)] = Field(default_factory=list)
    explained: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_recorded(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is usual is not said: packages of before stay known by their bytes.
        usual = {"steps": [], "bits": 8}
        return {k: v for k, v in dump(self).items() if k not in usual or v != usual[k]}

    @model_validator(mode="after")
    def _fitting(self) -> ImageSection:
        if (
            self.channels == 2
            or not len(self.mean) == len(self.std) == self.channels
            or self.window[0] >= self.window[1]
        ):
            raise ValueError("statistics that do not fit the channels")
        if self.bits > 8 and self.channels > 1:
            raise ValueError("16 bits of images in colour")
        spacing = self.shape if self.spacing is None else self.spacing
        if len({len(self.shape), len(self.stored_shape), len(spacing)}) > 1:
            raise ValueError("lengths of different dimensions")
        if math.prod(self.shape) * self.channels > LARGEST_IMAGE:
            raise ValueError(f"images of more than {LARGEST_IMAGE} numbers")
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """How originals became pixels, and how pixels are normalised."""
        low, high = self.window
        spacing = None if self.spacing is None else tuple(self.spacing)
        spec = ImageSpec(self.channels, tuple(self.shape), self.dtype, (float(low), float(high)), spacing)
        taken = tuple(StepRecord(step.name, step.options) for step in self.steps)
        return Preprocessing(spec, Normalisation(tuple(self.mean), tuple(self.std), self.flips, self.bits), taken)


def explained(white: int) -> dict[str, str]:
    """How pixels of so bright a white were made and are used, in words."""
    return {
        "resize": "linear with anti-aliasing, aspect kept, edge repeated",
        "inverse": f"raw = window[0] + pixel / {white} * (window[1] - window[0])",
        "normalise": f"x = (pixel / {white} - mean) / std, per channel",
    }


def image_section(preprocessing: Preprocessing, factor: int) -> ImageSection:
    """The section about images, from how they were prepared and how small they are stored."""
    image, normal = preprocessing.image, preprocessing.normalisation
    return ImageSection(
        channels=image.channels, shape=list(image.shape), stored_shape=list(image.stored_shape(factor)),
        dtype=image.dtype, window=list(image.window),
        spacing=None if image.spacing is None else list(image.spacing),
        mean=list(normal.mean), std=list(normal.std), flips=normal.flips, bits=normal.bits,
        explained=explained(normal.white),
        steps=[StepSection(name=step.name, options=dict(step.options)) for step in preprocessing.steps],
    )  # fmt: skip
