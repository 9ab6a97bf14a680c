"""Each image between percentiles of its own, for images whose intensities have no unit, as those of MRI."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from medistill.aliases import RawImages
from medistill.data.step import Changed, Percentiles, Step, register_step


@register_step
class Rescale(Step):
    """Spread each image from one percentile of its own pixels to another over the full scale, and clip the rest.

    Of several channels the percentiles are those of all together, so colours stay. A constant image becomes black.
    """

    name = "rescale"
    title = "Each image between percentiles of its own"
    reference = "monai.transforms.ScaleIntensityRangePercentiles"
    keeps_units = False

    percentiles: Percentiles = Field((0.5, 99.5), description="of an image's pixels, that become black and white")

    def apply(self, images: RawImages) -> Changed:
        from monai.transforms.intensity.array import ScaleIntensityRangePercentiles

        whole = 255.0 if images.dtype == np.uint8 else 1.0
        scale = ScaleIntensityRangePercentiles(*self.percentiles, 0.0, whole, clip=True)
        out = np.empty(images.shape, np.uint8 if images.dtype == np.uint8 else np.float32)
        left = 0
        for place, image in zip(out, images, strict=True):
            low, high = np.percentile(image, self.percentiles)
            if high <= low:  # there is nothing to spread
                place[...] = np.clip(image - low, 0, whole)
                left += 1
                continue
            done = np.asarray(scale(image.astype(np.float32)))
            place[...] = np.rint(done) if images.dtype == np.uint8 else done
        return Changed(out, left)
