"""Canaries in one run: a lower bound on ε from images that were planted or left out by coin flips.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, theorem 5.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medistill.aliases import Pixels, Targets
from medistill.audits.audit import Audit, Population, register_audit
from medistill.audits.distillations import distilled_from, distilling_seconds
from medistill.audits.shadows import feature_products
from medistill.data.image import decoded, pixel_type
from medistill.data.preprocess import TensorSplit
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package
from medistill.progress import Progress

CONFIDENCE = 0.95
GREATEST = 20.0
"""ε that is asked about at most."""

COARSE = 7
"""Blocks a side of a canary."""


@register_audit
class Canaries(Audit):
    """What a distillation tells of images that nothing resembles, each put in or left out by a coin flip.

    The strongest half of scores is guessed: the highest were in, the lowest out. So many right guesses would be
    rare under an ε; the largest ε under which they are rarer than one in twenty is the bound. It holds for the
    method and its settings with as many steps as were taken; the data are of the package's with the canaries added.
    """

    name = "canaries"
    title = "Canaries in one run"
    reference = "Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023"

    number: int = Field(
        200, ge=20, le=100_000, description="images that may be planted; at most a tenth of the others, but 20"
    )
    iterations: int = Field(100, ge=1, le=10_000_000, description="of the distillation, at most")
    delta: float = Field(0.0, ge=0, lt=1, description="of the guarantee that is tested")

    def seconds(self, package: Package, members: Population, key: Key) -> float:
        return distilling_seconds(package, members.split, self.iterations, key)

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        number = max(20, min(self.number, len(members) // 10))
        pixels, targets = canary_images(package, number, key.child("images"))
        took_part = key.child("coins").numpy().integers(0, 2, number).astype(bool)
        real = members.split
        data = TensorSplit(
            np.concatenate([real.pixels, pixels[took_part]]), np.concatenate([real.targets, targets[took_part]])
        )
        with Progress("distilling with canaries", 1, enabled=self.progress) as shown:
            images = distilled_from(package, data, None, self.iterations, key.child("distil"))
            shown.advance(1)
        shape = package.preprocessing.image.shape
        scores = feature_products(
            package, TensorSplit(pixels, targets), [(decoded(images.pixels, shape), images.strata)], key
        )[:, 0]
        right, guesses = right_guesses(scores, took_part)
        bound = lower_bound(number, guesses, right, self.delta)
        refuted = f"no ε under {bound:.2f} holds" if bound else "this refutes no ε"
        details: dict[str, Any] = {
            "canaries": number, "guesses": guesses, "right": right, "delta": self.delta, "confidence": CONFIDENCE,
        }  # fmt: skip
        return Finding(
            name=self.name, title=self.title, value=round(bound, 3), verdict="warn" if bound > 1 else "pass",
            explanation=(
                f"Of {guesses} guesses which of {number} planted images took part, {right} are right. With "
                f"{CONFIDENCE:.0%} confidence {refuted} for this method on these data ({self.iterations} steps at "
                "most). A low figure shows that this test found little, not that little can be found."
            ),
            reference=self.reference, details=details,
        )  # fmt: skip


def canary_images(package: Package, number: int, key: Key) -> tuple[Pixels, Targets]:
    """Images of random blocks, and random strata that they are put into."""
    generator, image, normal = key.numpy(), package.preprocessing.image, package.preprocessing.normalisation
    coarse = generator.integers(0, 2, (number, image.channels, *(COARSE for _ in image.shape))) * normal.white
    pixels = np.ascontiguousarray(decoded(coarse.astype(pixel_type(normal.bits)), image.shape))
    present = np.flatnonzero(package.synthetic_per_stratum)
    return pixels, package.task.representatives()[generator.choice(present, number)]


def right_guesses(scores: npt.NDArray[np.float64], took_part: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """How many guesses are right, and how many were made: about the quarter of highest and of lowest scores."""
    each = len(scores) // 4
    order = np.argsort(scores, kind="stable")
    right = int(took_part[order[-each:]].sum() + (~took_part[order[:each]]).sum())
    return right, 2 * each


def chance_under(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The greatest probability of so many right guesses where (ε, δ) holds: theorem 5.2."""
    from scipy.stats import binom  # every distillation loads the checks, few need this

    q = 1 / (1 + math.exp(-epsilon))
    chance = float(binom.sf(right - 1, guesses, q))
    if delta and right:
        below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, q))
        chance += 2 * canaries * delta * float((below / np.arange(1, right + 1)).max())
    return min(1.0, chance)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest ε that so many right guesses refute at that confidence; 0 if none."""
    from scipy.optimize import brentq

    if chance_under(canaries, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0

    def excess(epsilon: float) -> float:
        return chance_under(canaries, guesses, right, epsilon, delta) - (1 - confidence)

    return GREATEST if excess(GREATEST) < 0 else float(brentq(excess, 0.0, GREATEST))
