"""Gradient matching under augmentation that both sides share."""

from __future__ import annotations

from pydantic import Field

from medistill.distil.method import MethodInfo, register
from medistill.distil.methods.dc import DC


@register
class DSA(DC):
    """Differentiable siamese augmentation (Zhao, Bilen, ICML 2021): gradient matching with the same random change
    of real and synthetic images. Published with a start from real ones (``start=real``). The network's training is
    augmented too.
    """

    info = MethodInfo(
        name="dsa",
        title="Dataset condensation with differentiable siamese augmentation",
        version=3,
        kind="distillation",
        cost="hours",
        bibtex=(
            "@inproceedings{zhao2021dsa, title={Dataset Condensation with Differentiable Siamese Augmentation}, "
            "author={Zhao, Bo and Bilen, Hakan}, booktitle={ICML}, year={2021}}"
        ),
        queries=("gradient",),
    )

    augment: bool = Field(True, description="siamese augmentation")
