"""Nearest neighbours: whether images of a package are more like training images than like others.

Correlation of pixels, which *resemblance* looks at, misses what is shifted or of other contrast. So it is asked,
among as many training as held-out images of each stratum, which are nearer, by structural similarity (Wang, Bovik,
Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004) and by
features of a random network. Where nothing leaks, it is a training image half of the time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from medistill.aliases import Pixels
from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.features import FILTERS, embedded
from medistill.data.checks import unit_rows
from medistill.data.image import decoded, encoded
from medistill.data.sampling import draw_by_stratum
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.package.finding import Finding, Verdict
from medistill.package.package import Package

CANDIDATES = 10
"""Real images, the nearest by correlation, whose structural similarity is computed."""

WINDOW = 7
"""Pixels a side of the window in which structure is compared, at most."""

MORE, MUCH_MORE = 0.55, 0.75
"""Shares above which training images are surely, and surely much more often, the nearest."""

Rows = npt.NDArray[np.float64]


@register_audit
class NearestNeighbours(Audit):
    """Share of images whose nearest real image is a training image, among as many of either kind."""

    name = "nearest_neighbours"
    title = "Nearest neighbours in structure and features"
    reference = "medistill, docs/explanation/privacy.md"

    images: int = Field(2000, ge=10, le=1_000_000, description="real images of either kind to look at, at most")

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        held_out = non_members.without(members.patients)
        if not len(held_out):
            raise NotMeasuredError("no image that took no part is at hand to compare with")
        sides = _even(package, members, held_out, self.images, key)
        if not len(sides[0]):
            raise NotMeasuredError("no stratum has images of both kinds")
        closeness = {
            "structure": [structural_similarity(package.pixels, side) for side in sides],
            "features": _feature_similarity(package, sides, key.child("network")),
        }
        details: dict[str, object] = {"images_of_either": len(sides[0])}
        nearest: dict[str, float] = {}
        for name, (training, others) in closeness.items():
            nearest[name] = float(np.mean(training > others) + np.mean(training == others) / 2)
            details[name] = {
                "nearest_is_training": round(nearest[name], 4), "ci95": _interval(nearest[name], len(package)),
                "median_training": round(float(np.median(training)), 4),
                "median_held_out": round(float(np.median(others)), 4),
            }  # fmt: skip
        worst = max(nearest, key=lambda name: nearest[name])
        interval = _interval(nearest[worst], len(package))
        verdict: Verdict = "fail" if interval[0] > MUCH_MORE else "warn" if interval[0] > MORE else "pass"
        shares = " and ".join(f"{share:.0%} by {name}" for name, share in nearest.items())
        return Finding(
            name=self.name, title=self.title, value=round(nearest[worst], 4), interval=interval, verdict=verdict,
            explanation=f"Among {len(sides[0]):,} training and as many held-out images the nearest is a training "
            f"image for {shares} of the package's images; 50% where nothing leaks. It warns where that is surely "
            f"over {MORE:.0%}, and fails where over {MUCH_MORE:.0%}.",
            reference=self.reference, details=details,
        )  # fmt: skip


def _even(package: Package, members: Population, held_out: Population, most: int, key: Key) -> tuple[Pixels, Pixels]:
    """As many of either population in each stratum, at the size that networks see."""
    memberships = [package.task.membership(p.targets) for p in (members, held_out)]
    counts = np.minimum(*(m.sum(axis=0) for m in memberships))
    counts = np.floor(counts * min(1.0, most / max(1, counts.sum()))).astype(int).tolist()
    sides = []
    for name, population, membership in zip(("in", "out"), (members, held_out), memberships, strict=True):
        drawn = draw_by_stratum(membership, counts, lambda s, name=name: key.child(name, s))  # type: ignore[misc]
        rows = np.unique(np.concatenate(drawn)).astype(int)
        sides.append(np.ascontiguousarray(population.split.pixels[rows]))
    fewest = min(map(len, sides))  # an image of several strata may be drawn for each of them
    return sides[0][:fewest], sides[1][:fewest]


def structural_similarity(images: Pixels, real: Pixels) -> Rows:
    """Of each image (n, c, *spatial) the greatest structural similarity to the real images that correlate most, (n,),
    at the images' own size.
    """
    from monai.metrics.regression import compute_ssim_and_cs

    small = encoded(real, images.shape[2:])
    correlation = unit_rows(images.reshape(len(images), -1)) @ unit_rows(small.reshape(len(small), -1)).T
    few = min(CANDIDATES, len(small))
    chosen = np.argpartition(-correlation, few - 1, axis=1)[:, :few]
    dimensions = images.ndim - 2
    side = min(WINDOW, *(n - (n + 1) % 2 for n in images.shape[2:]))
    best = np.zeros(len(images))
    for number, image in enumerate(images):
        others = torch.from_numpy(small[chosen[number]]).float()
        own = torch.from_numpy(image.copy()).float().expand_as(others)
        found, _ = compute_ssim_and_cs(
            own, others, dimensions, [side] * dimensions, [1.5] * dimensions, data_range=255.0, kernel_type="uniform"
        )
        best[number] = float(found.flatten(1).mean(1).max())
    return best


def _feature_similarity(package: Package, sides: tuple[Pixels, Pixels], key: Key) -> list[Rows]:
    """Of each image the greatest correlation of features with either side, (n,) each."""
    shown = package.data.pixels
    network = ConvNet(shown.shape[1], tuple(shown.shape[2:]), package.task.outputs, FILTERS)
    parameters, normal = network.parameters(key), package.preprocessing.normalisation
    # Both as small as the package stores them, so that sharpness does not tell.
    blurred = [decoded(encoded(side, package.stored_shape), package.preprocessing.image.shape) for side in sides]
    own, *others = (embedded(network, parameters, normal, pixels) for pixels in (shown, *blurred))
    mean = np.concatenate(others).mean(axis=0)
    return [(unit_rows(own - mean) @ unit_rows(side - mean).T).max(axis=1).astype(np.float64) for side in others]


def _interval(share: float, images: int) -> list[float]:
    """95 % interval of a share, as if images were independent."""
    from scipy.stats import binomtest

    found = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]
