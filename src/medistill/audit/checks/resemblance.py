"""Resemblance: how near each image of a package comes to a training image, beside images that took no part.

A distilled image that shows a patient correlates with that patient's image more than with any image of somebody
who took no part. So the nearest training image of each is compared with the nearest held-out image, both at the size
in which the package stores its images. It finds copies; that it finds none proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels
from medistill.audit.audit import Audit, Population, register_audit
from medistill.data.arrays import blocks
from medistill.data.checks import NEAR_DUPLICATE, unit_rows
from medistill.data.image import encoded
from medistill.keys import Key
from medistill.package.finding import Finding, Verdict
from medistill.package.package import Package

RESEMBLES = 0.95
"""Correlation above which a person sees two images as one."""

TOLERANCE = 0.02
"""Share of images above :data:`RESEMBLES` by which training images may exceed held-out ones: chance in small sets."""


@dataclass(frozen=True)
class Nearest:
    """For each image of a package the most similar real one.

    Args:
        correlation: (n,) Pearson correlation of pixels, -1 to 1; of images without any contrast 0.
        row: (n,) which real image it is.
    """

    correlation: npt.NDArray[np.float32]
    row: npt.NDArray[np.int64]


def nearest_images(images: Pixels, real: Sequence[Pixels], rows: npt.NDArray[np.bool_] | None = None) -> Nearest:
    """The most similar real image of each, at the images' own size.

    Args:
        images: (n, c, *spatial) ``uint8`` as stored.
        real: (m, c, *spatial) ``uint8`` each, at least as large, one after the other.
        rows: (sum of m,) which of the real images count; all, if None.
    """
    own = unit_rows(images.reshape(len(images), -1))
    best = Nearest(np.full(len(own), -np.inf, dtype=np.float32), np.zeros(len(own), dtype=np.int64))
    offset = 0
    for part in real:
        for start, block in blocks(part):
            first = offset + start
            kept = np.arange(len(block)) if rows is None else np.flatnonzero(rows[first : first + len(block)])
            if len(kept):
                small = encoded(np.ascontiguousarray(block[kept]), images.shape[2:])
                found = own @ unit_rows(small.reshape(len(small), -1)).T
                at = found.argmax(axis=1)
                values = found[np.arange(len(own)), at]
                better = values > best.correlation
                best.correlation[better] = values[better]
                best.row[better] = first + kept[at[better]]
        offset += len(part)
    return best


@register_audit
class Resemblance(Audit):
    """Correlation of each image with its nearest training image and with its nearest held-out image."""

    name = "resemblance"
    title = "Resemblance to training images"
    reference = "medistill, docs/explanation/resemblance.md"
    when_packing = True

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        training = nearest_images(package.pixels, members.pixels).correlation
        copies = int((training > NEAR_DUPLICATE).sum())
        over = float((training > RESEMBLES).mean())
        details: dict[str, object] = {
            "median_training": _rounded(np.median(training)),
            "share_over_0.95_training": _rounded(over),
            "near_duplicates": copies,
            "training_images": len(members),
            "held_out_images": len(non_members),
        }
        excess = None
        if len(non_members):
            held = nearest_images(package.pixels, non_members.pixels).correlation
            excess = over - float((held > RESEMBLES).mean())
            # The nearest of many is nearer than the nearest of few, so the two are compared in equal number too.
            even = np.zeros(len(members), dtype=bool)
            even[key.child("equal number").numpy().permutation(len(members))[: len(non_members)]] = True
            same = nearest_images(package.pixels, members.pixels, even).correlation
            details |= {
                "median_held_out": _rounded(np.median(held)),
                "share_over_0.95_held_out": _rounded((held > RESEMBLES).mean()),
                "median_difference": _rounded(np.median(training - held)),
                "median_difference_equal_number": _rounded(np.median(same - held)),
            }
        verdict, explanation = _verdict(len(package.pixels), copies, over, excess, details)
        return Finding(
            name=self.name, title=self.title, value=_rounded(over if excess is None else excess), verdict=verdict,
            explanation=explanation, reference=self.reference, real_images=copies, details=details,
        )  # fmt: skip


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)


def _verdict(
    images: int, copies: int, over: float, excess: float | None, details: dict[str, object]
) -> tuple[Verdict, str]:
    measured = (
        f"Correlation with the nearest training image: median {details['median_training']:.3f}, "
        f"above {RESEMBLES} for {over:.0%} of the images"
    )
    if excess is not None:
        measured += (
            f"; with the nearest image that took no part: median {details['median_held_out']:.3f}, "
            f"{details['share_over_0.95_held_out']:.0%}"
        )
    else:
        measured += "; no image that took no part was at hand to compare with"
    if copies:
        return (
            "fail",
            f"{copies} of {images} images are training images, by a correlation over {NEAR_DUPLICATE}. {measured}.",
        )
    if (over if excess is None else excess) > TOLERANCE:
        return "warn", f"Images resemble training images more than images of others. {measured}."
    return "pass", f"{measured}. This measure finds copies; that it finds none does not show that nothing leaks."
