"""Label flips: images that look like another class than the one that they are labelled with."""

from __future__ import annotations

import numpy as np

from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.features import left_out_answers, package_features
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

FEWEST = 4
"""Images of each stratum, at least, without which nothing can be said of one of them."""

LEAD = 0.2
"""By how much another answer must be ahead, where 1 is the distance of right from wrong."""

MANY = 0.05
"""Share of images from which labels are not believed."""

ABLE = 0.75
"""Share of images that the model must label rightly, for what it says of the others to mean anything."""


@register_audit
class LabelFlips(Audit):
    """Share of images of which a model fitted to all others says surely another label than their own."""

    name = "label_flips"
    title = "Labels that do not fit their images"
    reference = "medistill, docs/explanation/privacy.md"
    needs_training_data = False

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        present = [number for number in package.synthetic_per_stratum if number]
        if min(present) < FEWEST or len(present) < 2:
            raise NotMeasuredError(f"with {min(present)} images of a {package.task.noun} nothing can be said")
        answers = left_out_answers(package_features(package, key), package.targets)
        own = np.where(package.targets > 0, answers, np.inf).min(axis=1)
        other = np.where(package.targets > 0, -np.inf, answers).max(axis=1)
        if not package.task.exclusive:  # an output that an image lacks says nothing against those that it has
            own = np.where(package.targets.any(axis=1), own, 1.0)
            other = np.zeros(len(own))
        right = float((other < own).mean())
        if right < ABLE:
            raise NotMeasuredError(f"a linear model labels only {right:.0%} of images rightly from all others")
        flipped = np.flatnonzero(other - own > LEAD)
        share = len(flipped) / len(package)
        of = f"{len(flipped)} of {len(package)} images"
        return Finding(
            name=self.name, title=self.title, value=round(share, 4), verdict="warn" if share > MANY else "pass",
            explanation=f"A linear model fitted to all other images gives {of} surely another label than their own.",
            reference=self.reference, details={"images": flipped.tolist()[:1000], "accuracy": round(right, 4)},
        )  # fmt: skip
