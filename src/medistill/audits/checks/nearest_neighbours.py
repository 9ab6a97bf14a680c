"""Nearest neighbours: whether images of a package are more like training images than like others.

Correlation of pixels, which *resemblance* looks at, misses what is shifted or of other contrast. So it is asked,
among as many training as held-out images of each stratum, which are nearer, by structural similarity and by features
of a random network. Where nothing leaks, it is a training image half of the time.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from medistill.aliases import Pixels
from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.closest import closest_in_features, closest_in_structure
from medistill.data.sampling import draw_by_stratum
from medistill.evaluation.intervals import share_interval
from medistill.keys import Key
from medistill.package.finding import Finding, Verdict
from medistill.package.package import Package
from medistill.tasks.task import Task

MORE, MUCH_MORE = 0.55, 0.75
"""Shares above which training images are surely, and surely much more often, the nearest."""


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
        sides = _even(package.task, (members, held_out), self.images, key)
        if not len(sides[0]):
            raise NotMeasuredError("no stratum has images of both kinds")
        closeness = {
            "structure": [closest_in_structure(package.pixels, side).similarity for side in sides],
            "features": [found.similarity for found in closest_in_features(package, sides, key.child("network"))],
        }
        details: dict[str, object] = {"images_of_either": len(sides[0])}
        nearest: dict[str, float] = {}
        for name, (training, others) in closeness.items():
            nearest[name] = float(np.mean(training > others) + np.mean(training == others) / 2)
            details[name] = {
                "nearest_is_training": round(nearest[name], 4), "ci95": share_interval(nearest[name], len(package)),
                "median_training": round(float(np.median(training)), 4),
                "median_held_out": round(float(np.median(others)), 4),
            }  # fmt: skip
        worst = max(nearest, key=lambda name: nearest[name])
        interval = share_interval(nearest[worst], len(package))
        verdict: Verdict = "fail" if interval[0] > MUCH_MORE else "warn" if interval[0] > MORE else "pass"
        shares = " and ".join(f"{share:.0%} by {name}" for name, share in nearest.items())
        return Finding(
            name=self.name, title=self.title, value=round(nearest[worst], 4), interval=interval, verdict=verdict,
            explanation=f"Among {len(sides[0]):,} training and as many held-out images the nearest is a training "
            f"image for {shares} of the package's images; 50% where nothing leaks. It warns where that is surely "
            f"over {MORE:.0%}, and fails where over {MUCH_MORE:.0%}.",
            reference=self.reference, details=details,
        )  # fmt: skip


def _even(task: Task, sides: tuple[Population, Population], most: int, key: Key) -> tuple[Pixels, Pixels]:
    """Random images of both populations, of each stratum equally many, at the size that networks see."""
    memberships = [task.membership(side.targets) for side in sides]
    counts = np.minimum(*(membership.sum(axis=0) for membership in memberships))
    counts = np.floor(counts * min(1.0, most / max(1, counts.sum()))).astype(int)
    pixels = []
    for name, side, membership in zip(("in", "out"), sides, memberships, strict=True):
        drawn = draw_by_stratum(membership, counts.tolist(), lambda s, name=name: key.child(name, s))  # type: ignore[misc]
        rows = np.unique(np.concatenate(drawn)).astype(int)
        pixels.append(side.at(rows))
    least = min(map(len, pixels))  # an image of several strata may be drawn for each of them
    return pixels[0][:least], pixels[1][:least]
