"""The foreground of each image, without the empty border around it."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from medistill.aliases import RawImages
from medistill.data.resize import resize
from medistill.data.step import Changed, Step, register_step


@register_step
class Crop(Step):
    """Cut each image to the box around what is brighter than its background, and enlarge that to the image's size.

    The aspect is kept, what is left of the canvas repeats the edge. An image that is all background, or none, stays.
    """

    name = "crop"
    title = "The foreground of each image, enlarged"
    reference = "monai.transforms.CropForeground"

    threshold: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the way from an image's darkest to its brightest pixel that is background",
    )
    margin: int = Field(0, ge=0, le=1024, description="pixels around the box that are kept")

    def apply(self, images: RawImages) -> Changed:
        from monai.transforms.utils import generate_spatial_bounding_box

        shape, whole, left = tuple(images.shape[2:]), images.dtype == np.uint8, 0
        out = np.empty(images.shape, np.uint8 if whole else np.float32)
        for place, image in zip(out, images, strict=True):
            low, high = float(image.min()), float(image.max())
            bound = low + self.threshold * (high - low)
            first, last = generate_spatial_bounding_box(
                image.astype(np.float32),
                lambda pixels, bound=bound: pixels > bound,
                margin=self.margin,
                allow_smaller=True,
            )
            cut = image[(slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))]
            if cut.size == 0 or cut.shape == image.shape:
                left += cut.size == 0
                place[...] = image
                continue
            fitted = resize(cut[None], shape)[0]
            place[...] = np.rint(fitted).clip(0, 255) if whole else fitted
        return Changed(out, left)
