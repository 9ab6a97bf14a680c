"""Intensities between two percentiles of the training images, so that a few outliers do not take the whole scale."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from medistill.aliases import RawImages
from medistill.data.arrays import blocks
from medistill.data.intensity import GREATEST_INTENSITY, percentiles_of
from medistill.data.step import Changed, Percentiles, Step, register_step
from medistill.errors import ConfigError


@register_step
class Clip(Step):
    """Clip intensities to a window: those given, or percentiles of all training pixels.

    Of images of 8 bits the window is spread over the full scale. How many pixels lay outside is counted when it is
    fitted.

    Example:
        >>> step = Clip(window=(10, 20))
        >>> step.apply(np.array([[[[0.0, 15.0, 99.0]]]])).images.tolist()
        [[[[10.0, 15.0, 20.0]]]]
    """

    name = "clip"
    title = "Intensities between two percentiles of the training images"
    reference = "numpy.percentile"

    percentiles: Percentiles = Field((0.5, 99.5), description="of all training pixels, that become black and white")
    window: tuple[float, float] | None = Field(None, description="these intensities in place of percentiles")
    of_8_bits: bool | None = Field(None, description="whether the window is of images of 8 bits; filled in by itself")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"{self.window[0]:g} to {self.window[1]:g} is no window, the first must be the lower")
        if self.window is not None and max(map(abs, self.window)) > GREATEST_INTENSITY:
            raise ValueError(f"a window beyond {GREATEST_INTENSITY:.0e}")
        return self

    @property
    def looks_at_training_images(self) -> bool:
        return self.window is None

    def fitted(self, train: RawImages) -> Self:
        found = self.window or tuple(percentiles_of(train, self.percentiles))
        window = found if found[0] < found[1] else None
        return self.model_copy(update={"window": window, "of_8_bits": train.dtype == np.uint8})

    def told(self, train: RawImages) -> str:
        if self.window is None:
            return "'clip' did nothing: nearly all training pixels are equal"
        low, high = self.window
        outside = sum(int(((block < low) | (block > high)).sum()) for _, block in blocks(train)) / train.size
        return f"{100 * outside:.2g} % of training pixels lie outside {low:g} to {high:g} and were clipped"

    def require(self, images: RawImages) -> None:
        if self.of_8_bits is not None and self.of_8_bits != (images.dtype == np.uint8):
            raise ConfigError(
                f"images of {images.dtype}", where="data.steps, clip",
                allowed="images of 8 bits" if self.of_8_bits else "images of more than 8 bits, as the window's were",
            )  # fmt: skip

    def apply(self, images: RawImages) -> Changed:
        if self.window is None:  # all training pixels are nearly one
            return Changed(images)
        low, high = self.window
        values = np.clip(images.astype(np.float32), np.float32(low), np.float32(high))
        if images.dtype != np.uint8:
            return Changed(values)
        return Changed(np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8))
