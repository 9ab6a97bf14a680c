"""Matching characteristic functions of embeddings.

The mean embedding says where a class lies; its characteristic function says everything
about its distribution. Both sides' functions are compared at random frequencies.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medistill.distil.matching import characteristic_distance
from medistill.distil.method import MethodInfo, register
from medistill.distil.optimiser import Optimiser
from medistill.distil.pool import PooledMatching
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key


@register
class NCFM(PooledMatching):
    """Characteristic-function matching after NCFM (Wang et al., CVPR 2025), equations 3 to 6, without its adversary.

    There a small network learns the frequencies at which the sides differ most, in features of
    networks trained on the data. Here the frequencies are drawn, once for each of the pool's
    untrained networks, whose embeddings are brought to unit length, so that the real side is
    computed once. The loss is the published one: amplitude differences weighed by
    ``amplitude``, phase differences by the rest.
    """

    info = MethodInfo(
        name="ncfm",
        title="Characteristic-function matching (after NCFM, random frequencies)",
        version=3,
        kind="distillation",
        cost="minutes",
        bibtex=(
            "@inproceedings{wang2025ncfm, title={Dataset Distillation with Neural Characteristic Function: "
            "A Minmax Perspective}, author={Wang, Shaobo and Yang, Yicun and Liu, Zhiyuan and Sun, Chenghao and "
            "Hu, Xuming and He, Conghui and Zhang, Linfeng}, booktitle={CVPR}, year={2025}}"
        ),
        queries=("mean",),
    )

    frequencies: int = Field(1024, ge=1, le=1_000_000, description="frequencies drawn for each network")
    scale: float = Field(3.0, gt=0, le=1000, description="standard deviation of frequencies, for unit embeddings")
    amplitude: float = Field(0.5, ge=0, le=1, description="weight of amplitudes against phases")

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser(learning_rate=10.0)

    def statistic_size(self, embedding_size: int) -> int:
        return 2 * self.frequencies

    def statistic(self, embedded: Tensor, key: Key) -> Tensor:
        """Cosines and sines of the angles between embeddings and frequencies."""
        shape = (embedded.shape[1], self.frequencies)
        drawn = torch.randn(shape, generator=key.generator(), dtype=embedded.dtype)
        frequencies = self.scale * drawn.to(embedded.device)
        # Unit length makes one scale of frequencies fit every network and every size of image.
        angles = functional.normalize(embedded) @ frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def distance(self, synthetic: Tensor, real: Tensor) -> Tensor:
        return characteristic_distance(synthetic, real, self.amplitude)
