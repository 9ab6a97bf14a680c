"""Text in pixels: do images show rows of letters?"""

from __future__ import annotations

from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.data.text import SMALLEST_SIDE, shows_text, slices
from medistill.evaluation.intervals import share_interval
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package


@register_audit
class TextInPixels(Audit):
    """Share of images as stored that show a row of shapes like letters (:mod:`medistill.data.text`)."""

    name = "text_in_pixels"
    title = "Text in pixels"
    reference = "medistill, docs/explanation/privacy.md"
    needs_training_data = False

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        *_, height, width = package.stored_shape
        if min(height, width) < SMALLEST_SIDE:
            raise NotMeasuredError(f"images are stored at {height}×{width} pixels, at which no letter can be read")
        found = [row for row, image in enumerate(package.pixels) if any(map(shows_text, slices(image)))]
        share = len(found) / len(package)
        return Finding(
            name=self.name, title=self.title, value=round(share, 4), interval=share_interval(share, len(package)),
            verdict="warn" if found else "pass",
            explanation=f"{len(found)} of {len(package)} images show a row of shapes like letters. Letters that "
            "touch, are very small or faint are not found.",
            reference=self.reference, details={"images": found[:1000]},
        )  # fmt: skip
