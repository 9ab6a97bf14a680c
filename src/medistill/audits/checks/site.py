"""Site: whether a package tells where its images come from.

A scanner, a protocol or a stain leaves its mark on every image, and networks tell hospitals apart by it (Zech et al.,
"Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs", PLOS Medicine
2018). Whoever has images of several sites can distil each as the package was, and ask which it is like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from medistill.aliases import Pixels
from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.distillations import distilled_from, distilling_seconds
from medistill.audits.features import Features, random_network
from medistill.audits.shadows import halves, halves_of, numbered_people
from medistill.data.image import decoded
from medistill.evaluation.intervals import share_interval
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CHANCE, TOLD = 0.5, 0.55
"""Shares of images: told by chance, and above which the site is told."""


@register_audit
class SiteToldFromPackage(Audit):
    """Share of a package's images that a linear model takes for images made from the package's sites.

    The package's method distils halves of the people of its sites and of others. The model tells one from the other
    by random convolutional features; fitted to one half alone, it is asked how well it tells what the other became.
    """

    name = "site"
    title = "Site or scanner told from the package"
    reference = "medistill, docs/explanation/privacy.md"

    iterations: int = Field(100, ge=1, le=10_000_000, description="of each distillation, at most")
    halvings: int = Field(2, ge=1, le=1000, description="of either side; both halves are distilled each time")

    def seconds(self, package: Package, members: Population, key: Key) -> float:
        if members.sites is None:
            return 0.0
        return 4 * self.halvings * distilling_seconds(package, members.split, self.iterations, key)

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        if members.sites is None or non_members.sites is None:
            raise NotMeasuredError("the data do not say which site an image comes from ({split}_sites in an .npz)")
        others = non_members.only(~np.isin(non_members.sites, members.sites))
        if not len(others) or others.sites is None:
            raise NotMeasuredError("every site that the data name took part, so no other is there to compare with")
        shared = _strata(package, members) & _strata(package, others)
        made = [
            part
            for name, side in (("ours", members), ("theirs", others))
            for part in self._made_from_halves(package, side, name, key, shared)
        ]
        rows = np.isin(package.strata, list(shared))
        if not rows.any():
            raise NotMeasuredError(f"no {package.task.noun} has images of both sides")
        recognised = _recognised(made)
        learned = share_interval(recognised, sum(len(part.features) for part in made))[0] > CHANCE
        taken = _model(made).predict(_features(package, package.pixels[rows], key)) == "ours"
        value, interval = float(taken.mean()), share_interval(float(taken.mean()), len(taken))
        sites, elsewhere = len(np.unique(members.sites)), len(np.unique(others.sites))
        return Finding(
            name=self.name, title=self.title, value=round(value, 4), interval=interval,
            verdict="warn" if interval[0] > TOLD and learned else "pass",
            explanation=f"A linear model takes {value:.0%} of the package's images for images made from its own "
            f"{_sites(sites)}, rather than from {_sites(elsewhere)} that took no part; of images made "
            f"in the same way of people that the model had not seen it tells {recognised:.0%} ({CHANCE:.0%} is "
            f"chance). It warns where the former is surely over {TOLD:.0%} and the latter surely over chance.",
            reference=self.reference,
            details={
                "sites": sites, "other_sites": elsewhere, "images_of_other_sites": len(others),
                "unseen_images_told": round(recognised, 4),
            },
        )  # fmt: skip

    def _made_from_halves(
        self, package: Package, side: Population, name: str, key: Key, shared: set[int]
    ) -> Iterator[_Made]:
        """What the package's method makes of random halves of a side's people, of the strata that both sides have."""
        own, person = key.child(name), numbered_people(side)
        took_part = halves(int(person.max()) + 1, 2 * self.halvings, own)[person]
        for number, half in enumerate(halves_of(side.split, took_part)):
            patients = None if side.patients is None else side.patients[took_part[:, number]]
            stored = distilled_from(package, half, patients, self.iterations, own.child("shadow", number))
            rows = np.isin(stored.strata, list(shared))
            yield _Made(name, number, _features(package, stored.pixels[rows], key))


@dataclass(frozen=True)
class _Made:
    """Features (n, d) of the images that were made from a half of a side."""

    side: str
    half: int
    features: Features


def _strata(package: Package, population: Population) -> set[int]:
    return set(np.flatnonzero(package.task.membership(population.targets).any(axis=0)).tolist())


def _sites(number: int) -> str:
    return f"{number} site" + "s" * (number != 1)


def _features(package: Package, pixels: Pixels, key: Key) -> Features:
    """Of images as stored."""
    return random_network(package, key.child("network"))(decoded(pixels, package.preprocessing.image.shape))


def _recognised(made: Sequence[_Made]) -> float:
    """Share of images told by a model that saw only the other half of the people; the mean over halves and sides."""
    shares = []
    for number in {part.half for part in made}:
        model = _model([part for part in made if part.half == number])
        asked = [part for part in made if part.half == number ^ 1 and len(part.features)]
        shares += [np.mean(model.predict(part.features) == part.side) for part in asked]
    return float(np.mean(shares))


def _model(made: Sequence[_Made]) -> Pipeline:
    """Says of features which side they are of."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, class_weight="balanced", max_iter=1000))
    sides = np.repeat([part.side for part in made], [len(part.features) for part in made])
    return model.fit(np.concatenate([part.features for part in made]), sides)
