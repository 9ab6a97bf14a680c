"""Statistics of pixels: do the images fit what the manifest says of the originals?"""

from __future__ import annotations

import numpy as np

from medistill.audits.audit import Audit, Population, register_audit
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

FAR, EXTREME, FLAT = 1.0, 0.5, 1 / 255
"""Deviations between the mean and the manifest's; share of black and white pixels; gray values of an image without
contrast."""


@register_audit
class PixelStatistics(Audit):
    """Mean and spread of pixels beside the manifest's, black and white pixels, images without contrast."""

    name = "pixel_statistics"
    title = "Statistics of pixels"
    reference = "medistill, docs/explanation/privacy.md"
    needs_training_data = False

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        normal, pixels = package.preprocessing.normalisation, package.pixels
        axes = (0, *range(2, pixels.ndim))
        mean, spread = pixels.mean(axis=axes) / normal.white, pixels.std(axis=axes) / normal.white
        away = np.abs(mean - np.array(normal.mean)) / np.array(normal.std)
        extreme = float(np.isin(pixels, (0, normal.white)).mean())
        flat = np.flatnonzero(pixels.reshape(len(pixels), -1).std(axis=1) / normal.white < FLAT)
        problems = [
            text
            for text, there in (
                (f"their mean is {away.max():.1f} deviations from the originals'", away.max() > FAR),
                (f"{extreme:.0%} of pixels are black or white", extreme > EXTREME),
                (f"{len(flat)} images have no contrast", len(flat) > 0),
            )
            if there
        ]
        usual = f"The mean of pixels lies {away.max():.2f} deviations from what the manifest says of the originals"
        return Finding(
            name=self.name, title=self.title, value=round(float(away.max()), 4), reference=self.reference,
            verdict="warn" if problems else "pass",
            explanation=f"{usual}; {extreme:.1%} are black or white; {len(flat)} images have no contrast."
            if not problems
            else f"Images are unusual: {'; '.join(problems)}.",
            details={
                "mean": [round(float(v), 4) for v in mean], "std": [round(float(v), 4) for v in spread],
                "black_or_white": round(extreme, 4), "without_contrast": flat.tolist()[:1000],
            },
        )  # fmt: skip
