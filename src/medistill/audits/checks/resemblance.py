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
from medistill.audits.audit import Audit, Population, register_audit
from medistill.data.arrays import blocks
from medistill.data.duplicates import NEAR_DUPLICATE, unit_rows
from medistill.data.image import encoded
from medistill.keys import Key
from medistill.package.finding import Finding, Verdict
from medistill.package.package import Package

RESEMBLES = 0.95
"""Correlation above which a person sees two images as one."""

TOLERANCE = 0.02
"""Share of images above :data:`RESEMBLES` by which training images may exceed held-out ones: chance in small sets."""

Correlations = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Nearest:
    """For each image of a package the most similar real one.

    Args:
        correlation: (n,) Pearson correlation of pixels, -1 to 1; of images without any contrast 0.
        row: (n,) which real image it is.
        second: (n,) correlation with the most similar image of any other patient, or simply with the second one
            where patients are not known.
        in_subset: (n,) the greatest correlation with those real images that were asked about separately.
    """

    correlation: Correlations
    row: npt.NDArray[np.int64]
    second: Correlations
    in_subset: Correlations

    @property
    def lead(self) -> Correlations:
        """(n,) how far the nearest is ahead of the second."""
        return self.correlation - self.second


def nearest_images(
    images: Pixels,
    real: Sequence[Pixels],
    patients: npt.NDArray[np.str_] | None = None,
    subset: npt.NDArray[np.bool_] | None = None,
) -> Nearest:
    """The most similar real image of each, at the images' own size.

    Args:
        images: (n, c, *spatial) ``uint8`` as stored.
        real: (m, c, *spatial) ``uint8`` each, at least as large, one after the other.
        patients: (sum of m,) whose the real images are.
        subset: (sum of m,) the real images that :attr:`Nearest.in_subset` is about; all, if None.
    """
    stored = unit_rows(images.reshape(len(images), -1))
    owners = np.arange(sum(map(len, real))) if patients is None else np.unique(patients, return_inverse=True)[1]
    everyone, lowest = np.arange(len(stored)), np.full(len(stored), -np.inf, dtype=np.float32)
    best, second, in_subset = lowest.copy(), lowest.copy(), lowest.copy()
    row, owner = np.zeros(len(stored), dtype=np.int64), np.full(len(stored), -1)
    first = 0
    for part in real:
        # Of each real image: as numbers of four bytes at both sizes, twice, and its correlations.
        row_bytes = 8 * part[:1].size + 12 * len(stored)
        for _, block in blocks(part, row_bytes):
            rows = slice(first, first + len(block))
            small = encoded(np.ascontiguousarray(block), images.shape[2:])
            correlation = stored @ unit_rows(small.reshape(len(small), -1)).T
            chosen = slice(None) if subset is None else subset[rows]
            in_subset = np.maximum(in_subset, correlation[:, chosen].max(axis=1, initial=-np.inf))
            at = correlation.argmax(axis=1)
            here, owner_here = correlation[everyone, at], owners[rows][at]
            correlation[owners[rows] == owner_here[:, None]] = -np.inf
            second_here = correlation.max(axis=1)
            better = here > best
            second = np.where(
                owner_here == owner,
                np.maximum(second, second_here),
                np.where(better, np.maximum(best, second_here), np.maximum(second, here)),
            )
            row[better], owner[better] = first + at[better], owner_here[better]
            best = np.maximum(best, here)
            first += len(block)
    return Nearest(best, row, second, in_subset)


@register_audit
class Resemblance(Audit):
    """Correlation of each image with its nearest training image and with its nearest held-out image.

    The nearest of many is nearer than the nearest of few. So training images are compared with at most as many
    held-out ones. Where there are fewer of these, and the share of images above :data:`RESEMBLES` is larger to
    training images by more than :data:`TOLERANCE`, it is asked whether numbers explain it. They do if it is not
    larger among as many images of either side, and no image stands out: above :data:`RESEMBLES`, and ahead of the
    nearest image of any other training patient by more than twice what any image is ahead by among held-out ones.
    Images of training patients are no held-out images, wherever they are.
    """

    name = "resemblance"
    title = "Resemblance to training images"
    reference = "medistill, docs/explanation/resemblance.md"
    when_packing = True

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        held_out = non_members.without(members.patients)
        even = min(len(members), len(held_out))
        generator = key.child("equal number").numpy()
        subsets = [_drawn(len(population), even, generator) for population in (members, held_out)]
        near = nearest_images(package.pixels, members.pixels, members.patients, subsets[0])
        copies = int((near.correlation > NEAR_DUPLICATE).sum())
        details: dict[str, object] = {
            "median_training": _rounded(np.median(near.correlation)),
            "share_over_0.95_training": _over(near.correlation),
            "near_duplicates": copies,
            "training_images": len(members),
            "held_out_images": len(held_out),
            "held_out_images_of_training_patients": len(non_members) - len(held_out),
        }
        measured = f"Correlation with the nearest of {len(members):,} training images: {_told(near.correlation)}"
        value, explained = _over(near.correlation), False
        if even:
            others = nearest_images(package.pixels, held_out.pixels, held_out.patients, subsets[1])
            stand_out = int(((near.correlation > RESEMBLES) & (near.lead > 2 * others.lead.max())).sum())
            details |= {
                "median_held_out": _rounded(np.median(others.correlation)),
                "share_over_0.95_held_out": _over(others.correlation),
                "near_duplicates_held_out": int((others.correlation > NEAR_DUPLICATE).sum()),
                "median_difference": _rounded(np.median(near.correlation - others.correlation)),
                "equal_number": even,
                "share_over_0.95_training_equal_number": _over(near.in_subset),
                "share_over_0.95_held_out_equal_number": _over(others.in_subset),
                "median_difference_equal_number": _rounded(np.median(near.in_subset - others.in_subset)),
                "stand_out": stand_out,
            }
            value = _share(near.correlation) - _share(others.in_subset)
            explained = _share(near.in_subset) - _share(others.in_subset) <= TOLERANCE and not stand_out
            measured += f"; of {len(held_out):,} images that took no part: {_told(others.correlation)}"
            if len(members) != len(held_out):
                shares = " and ".join(f"{_share(comparison.in_subset):.0%}" for comparison in (near, others))
                measured += f". Among {even:,} of either: above {RESEMBLES} for {shares}"
            if value > TOLERANCE and stand_out:
                measured += f". Far ahead of all other training images: the nearest of {stand_out} images"
            if copies and details["near_duplicates_held_out"]:
                measured += (
                    f". {details['near_duplicates_held_out']} images are nearly identical to images that took no "
                    "part, so images of this set may be nearly alike"
                )
        else:
            measured += "; no image that took no part was at hand to compare with"
        verdict, explanation = _verdict(len(package.pixels), copies, value > TOLERANCE and not explained, measured)
        return Finding(
            name=self.name, title=self.title, value=_rounded(value), verdict=verdict, explanation=explanation,
            reference=self.reference, real_images=copies, details=details,
        )  # fmt: skip


def _drawn(number: int, chosen: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """So many of a number of rows."""
    drawn = np.zeros(number, dtype=bool)
    drawn[generator.permutation(number)[:chosen]] = True
    return drawn


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)


def _share(correlation: Correlations) -> float:
    return float((correlation > RESEMBLES).mean())


def _over(correlation: Correlations) -> float:
    return _rounded(_share(correlation))


def _told(correlation: Correlations) -> str:
    return f"median {np.median(correlation):.3f}, above {RESEMBLES} for {_share(correlation):.0%}"


def _verdict(images: int, copies: int, more: bool, measured: str) -> tuple[Verdict, str]:
    if copies:
        return (
            "fail",
            f"{copies} of {images} images are nearly identical to training images: correlation over "
            f"{NEAR_DUPLICATE}. {measured}.",
        )
    if more:
        return "warn", f"Images resemble training images more than images of others. {measured}."
    return "pass", f"{measured}. This measure finds copies; that it finds none does not show that nothing leaks."
