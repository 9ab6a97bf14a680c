"""Stain normalisation of histology."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from medistill.aliases import RawImages
from medistill.data.step import Changed, Step, register_step
from medistill.errors import ConfigError


@register_step
class Stain(Step):
    """Bring the colours of haematoxylin and eosin in each image to those of a fixed reference.

    An image in which no two stains are found stays as it is, and is counted.

    Source: Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009, as MONAI
    computes it.
    """

    name = "stain"
    title = "Colours of haematoxylin and eosin as in a reference (Macenko)"
    reference = "monai.apps.pathology.transforms.stain.NormalizeHEStains"

    threshold: float = Field(0.15, gt=0, le=5, description="optical density below which a pixel is background")

    def require(self, images: RawImages) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            kind = f"{images.dtype}, {images.shape[1]} channels, {images.ndim - 2} dimensions"
            raise ConfigError(kind, where="data.steps, stain", allowed="colour pictures of 8 bits, as of histology")

    def apply(self, images: RawImages) -> Changed:
        from monai.apps.pathology.transforms.stain.array import NormalizeHEStains

        normalise = NormalizeHEStains(beta=self.threshold)
        out, left = np.empty_like(images), 0
        for place, image in zip(out, images, strict=True):
            if (np.ptp(image.reshape(3, -1), axis=1) == 0).all():  # one colour
                place[...] = image
                left += 1
                continue
            try:
                with np.errstate(all="ignore"):
                    done = normalise(np.moveaxis(image, 0, -1))
            except (ValueError, np.linalg.LinAlgError):  # nothing but background
                place[...] = image
                left += 1
                continue
            place[...] = np.moveaxis(np.asarray(done), -1, 0)
        return Changed(out, left)
