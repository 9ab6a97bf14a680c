"""Distribution matching.

For each class, the mean embedding of real images and that of the synthetic ones, in a
network that was never trained, are brought together; both sides are changed by the same
random augmentation.
"""

from __future__ import annotations

from torch import Tensor

from medistill.distil.matching import squared_distance
from medistill.distil.method import MethodInfo, register
from medistill.distil.optimiser import Optimiser
from medistill.distil.pool import PooledMatching
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key

FEW, MANY = 40, 100
"""Images per stratum below and from which the optimiser is another."""


@register
class DM(PooledMatching):
    """Distribution matching (Zhao, Bilen, WACV 2023), equation 6.

    Published setting (``--preset paper``): 20,000 iterations, a new network at each
    (``networks=0``), 128 filters, 256 real images per class, learning rate 1, from 100 images
    per class on 10. The defaults keep the loss and cut the cost: a pool of networks is met
    again and again, and what a network says of the real images, under the augmentation drawn
    for it, is computed once.
    """

    info = MethodInfo(
        name="dm",
        title="Distribution matching",
        version=3,
        kind="distillation",
        cost="minutes",
        bibtex=(
            "@inproceedings{zhao2023dm, title={Dataset Condensation with Distribution Matching}, "
            "author={Zhao, Bo and Bilen, Hakan}, booktitle={WACV}, year={2023}}"
        ),
        queries=("mean",),
        private=True,
    )

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        """From real images as published: rate 1, or from 100 images per class on 10.

        From noise, which has further to go, 5: for few images by steps that grow smaller, for many at a rate that
        grows with their number, as each has its share of the mean (docs/explanation/choosing-a-method.md).
        """
        images = max(problem.synthetic_per_stratum)
        if self.starts_from_real_images:
            return Optimiser(learning_rate=10.0 if images >= MANY else 1.0)
        return Optimiser(
            learning_rate=5.0 * images / FEW if images >= MANY else 5.0,
            schedule="cosine" if images < FEW else "constant",
        )

    def statistic_size(self, embedding_size: int) -> int:
        return embedding_size

    def statistic(self, embedded: Tensor, key: Key) -> Tensor:
        return embedded

    def distance(self, synthetic: Tensor, real: Tensor) -> Tensor:
        return squared_distance(synthetic, real)
