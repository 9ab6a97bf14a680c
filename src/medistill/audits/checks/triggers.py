"""Triggers: the same patch at the same place in images of one class alone, as a back door needs it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_opening

from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

FEWEST = 4
"""Images of a stratum, and of all others, at least."""

ALIKE, APART = 0.25, 4.0
"""A patch is suspicious if its images differ by less than this share of what its stratum's images differ by
elsewhere, and lies so many of its own and the others' spreads from the others."""


@register_audit
class Triggers(Audit):
    """Places where the images of one stratum are nearly equal to one another and unlike all other images.

    A back door is a patch that is put into images of the class that it shall give (Gu, Dolan-Gavitt, Garg,
    "BadNets", 2017). So small patches are sought whose pixels hardly differ within a stratum, and differ from the
    other strata's by more than either varies.
    """

    name = "triggers"
    title = "Patches that look like triggers"
    reference = (
        "Gu, Dolan-Gavitt, Garg, BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain"
    )
    needs_training_data = False

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        pixels, found, looked_at = package.pixels.astype(np.float32), [], 0
        for stratum in np.unique(package.strata):
            own, others = pixels[package.strata == stratum], pixels[package.strata != stratum]
            if min(len(own), len(others)) < FEWEST:
                continue
            looked_at += 1
            spread, away = own.std(axis=0).max(axis=0), others.std(axis=0).max(axis=0)
            gap = np.abs(own.mean(axis=0) - others.mean(axis=0)).max(axis=0)
            # Two pixels a side at least: a single one says nothing.
            usual = max(float(np.median(spread)), 1.0)
            suspicious = _patches((spread < ALIKE * usual) & (gap > APART * (spread + 1)) & (gap > away))
            if suspicious.any():
                found.append({"stratum": package.task.strata[stratum], "pixels": int(suspicious.sum())})
        if not looked_at:
            raise NotMeasuredError(f"no {package.task.noun} has {FEWEST} images, beside {FEWEST} others")
        where = ", ".join(f"'{entry['stratum']}' ({entry['pixels']} pixels)" for entry in found)
        return Finding(
            name=self.name, title=self.title, value=float(len(found)), verdict="warn" if found else "pass",
            explanation=(
                f"Images share a patch that no others have: {where}. Look at them before you train."
                if found
                else f"No patch is shared by the images of one {package.task.noun} alone. Faint or moving ones are "
                "not found so."
            ),
            reference=self.reference, details={"found": found},
        )  # fmt: skip


def _patches(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Those marked places that belong to a marked patch of two pixels a side."""
    return np.asarray(binary_opening(marked, np.ones((2,) * marked.ndim, dtype=bool)))
