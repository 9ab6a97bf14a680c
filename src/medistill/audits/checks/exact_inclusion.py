"""Exact inclusion: images of a package that are real images, bit for bit, at the size in which they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from medistill.aliases import Pixels
from medistill.audits.audit import Audit, Population, register_audit
from medistill.data.arrays import blocks
from medistill.data.image import encoded
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package


@register_audit
class ExactInclusion(Audit):
    """Number of images that equal a training image brought to the stored size."""

    name = "exact_inclusion"
    title = "Training images in the package"
    reference = "medistill, docs/explanation/privacy.md"

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        own = [_digest(image) for image in package.pixels]
        wanted = frozenset(own)
        from_training = _included(wanted, members.pixels, package.pixels)
        from_others = _included(wanted, non_members.pixels, package.pixels)
        equal = sum(digest in from_training for digest in own)
        found = f"{equal} of {len(own)} images equal one of {len(members):,} training images bit for bit"
        return Finding(
            name=self.name, title=self.title, value=float(equal), verdict="fail" if equal else "pass",
            explanation=f"{found}, at the size in which they are stored.", reference=self.reference,
            real_images=equal, details={"others": sum(digest in from_others for digest in own)},
        )  # fmt: skip


def _digest(image: Pixels) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def _included(wanted: frozenset[bytes], real: Sequence[Pixels], stored: Pixels) -> set[bytes]:
    """Those of the digests that are of real images at the stored size."""
    found: set[bytes] = set()
    for part in real:
        for _, block in blocks(part, 8 * part[:1].size):
            small = encoded(np.ascontiguousarray(block), stored.shape[2:])
            found |= wanted & {_digest(image) for image in small}
    return found
