"""Outliers: images far from all others of their class."""

from __future__ import annotations

import numpy as np

from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.features import package_features
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

FAR = 6.0
"""Robust standard deviations beyond the median distance."""

FEWEST = 5
"""Images of a stratum without which no distance is usual."""


@register_audit
class ClassOutliers(Audit):
    """Images whose features lie much farther from the middle of their stratum than others do.

    The middle is the median of each feature; a distance is far if it is over the median distance by :data:`FAR` times
    1.4826 times the median absolute deviation (Rousseeuw, Croux, "Alternatives to the Median Absolute Deviation",
    JASA 1993).
    """

    name = "class_outliers"
    title = "Outliers of their class"
    reference = "medistill, docs/explanation/privacy.md"
    needs_training_data = False

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        features, far, looked_at = package_features(package, key), [], 0
        for stratum in np.unique(package.strata):
            rows = np.flatnonzero(package.strata == stratum)
            if len(rows) < FEWEST:
                continue
            looked_at += len(rows)
            own = features[rows]
            distance = np.linalg.norm(own - np.median(own, axis=0), axis=1)
            deviation = 1.4826 * np.median(np.abs(distance - np.median(distance)))
            far += rows[distance - np.median(distance) > FAR * max(deviation, 0.02 * np.median(distance))].tolist()
        if not looked_at:
            raise NotMeasuredError(f"no {package.task.noun} has {FEWEST} images")
        return Finding(
            name=self.name, title=self.title, value=round(len(far) / looked_at, 4), verdict="warn" if far else "pass",
            explanation=f"{len(far)} of {looked_at} images lie far from all others of their {package.task.noun}.",
            reference=self.reference, details={"images": far[:1000]},
        )  # fmt: skip
