"""k-centre: real images such that no image is far from a chosen one."""

from __future__ import annotations

import torch
from torch import Tensor

from medistill.distil.embedding import EmbeddingCoreset
from medistill.distil.method import MethodInfo, register
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key


@register
class KCentre(EmbeddingCoreset):
    """Greedy k-centre (Gonzalez 1985; Sener, Savarese, ICLR 2018) in a random embedding.

    Starts with the image nearest the mean. These are real patient images.
    """

    info = MethodInfo(
        "k-centre",
        "k-centre greedy",
        1,
        "coreset",
        "seconds",
        "@inproceedings{sener2018coreset, title={Active Learning for Convolutional Neural Networks: "
        "A Core-Set Approach}, author={Sener, Ozan and Savarese, Silvio}, booktitle={ICLR}, year={2018}}",
        queries=("embeddings", "draw"),
    )

    def choose(self, problem: DistillationProblem, stratum: int, count: int, key: Key) -> Tensor:
        return farthest_first(self.embed(problem, stratum, key), count)


def farthest_first(features: Tensor, count: int) -> Tensor:
    """Rows of (n, d) features: the one nearest the mean, then always the one farthest from all chosen."""
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = features.new_full((len(features),), torch.inf)
    while len(chosen) < count:
        distance = (features - features[chosen[-1]]).square().sum(1)
        nearest = torch.minimum(nearest, distance)
        nearest[chosen] = -1  # identical images must not be chosen again
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)
