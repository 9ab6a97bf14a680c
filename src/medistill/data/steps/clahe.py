"""Contrast-limited adaptive histogram equalisation."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from medistill.aliases import RawImages
from medistill.data.step import Changed, Step, register_step
from medistill.errors import ConfigError

MOST_TILES = 4096
"""In an image; each has a histogram of its own."""


@register_step
class Clahe(Step):
    """Equalise contrast within tiles of each image, with a bound on how much it is raised; colours keep their hue.

    Source: Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994, as scikit-image
    computes it: of colour images the value of HSV, of volumes in tiles of three dimensions.
    """

    name = "clahe"
    title = "Contrast equalised within tiles (CLAHE)"
    reference = "skimage.exposure.equalize_adapthist"
    keeps_units = False

    tiles: int = Field(8, ge=1, le=64, description="tiles along each side")
    clip_limit: float = Field(0.01, gt=0, le=1, description="the more, the more contrast")

    def require(self, images: RawImages) -> None:
        if self.tiles ** (images.ndim - 2) > MOST_TILES:
            raise ConfigError(
                f"{self.tiles} tiles along each of {images.ndim - 2} sides", where="data.steps, clahe.tiles",
                allowed=f"up to {MOST_TILES} in all",
            )  # fmt: skip

    def apply(self, images: RawImages) -> Changed:
        from skimage.color import hsv2rgb, rgb2hsv
        from skimage.exposure import equalize_adapthist

        # As it is, it takes a last axis of three or four for colours.
        equalise = getattr(equalize_adapthist, "__wrapped__", equalize_adapthist)
        whole = images.dtype == np.uint8
        out = np.empty(images.shape, np.uint8 if whole else np.float32)
        tile = tuple(max(1, side // self.tiles) for side in images.shape[2:])

        def equalised(values: RawImages) -> RawImages:
            return np.asarray(equalise(values, kernel_size=tile, clip_limit=self.clip_limit))

        left = 0
        for place, image in zip(out, images, strict=True):
            low, high = float(image.min()), float(image.max())
            if low == high:
                place[...] = image if whole else 0
                left += 1
                continue
            values = (image.astype(np.float64) - low) / (high - low)
            if len(image) == 3:
                colour = rgb2hsv(values, channel_axis=0)
                colour[2] = equalised(colour[2])
                done = hsv2rgb(colour, channel_axis=0)
            else:
                done = np.stack([equalised(channel) for channel in values])
            place[...] = np.rint(255 * done) if whole else done
        return Changed(out, left)
