"""Herding: real images whose running mean follows the class mean."""

from __future__ import annotations

import torch
from torch import Tensor

from medistill.distil.embedding import EmbeddingCoreset
from medistill.distil.method import MethodInfo, register
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key


@register
class Herding(EmbeddingCoreset):
    """Greedy herding (Welling, ICML 2009) in a random embedding. These are real patient images."""

    info = MethodInfo(
        "herding",
        "Herding",
        1,
        "coreset",
        "seconds",
        "@inproceedings{welling2009herding, title={Herding dynamical weights to learn}, "
        "author={Welling, Max}, booktitle={ICML}, year={2009}}",
        queries=("embeddings", "draw"),
    )

    def choose(self, problem: DistillationProblem, stratum: int, count: int, key: Key) -> Tensor:
        return herd(self.embed(problem, stratum, key), count)


def herd(features: Tensor, count: int) -> Tensor:
    """Rows of (n, d) features chosen one by one so that the mean of the chosen is nearest the mean of all."""
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    squares = features.square().sum(1)
    chosen: list[int] = []
    for taken in range(count):
        # |mean − (total + x)/(taken + 1)|² without building all candidates' means.
        goal = mean * (taken + 1) - total
        distance = squares - 2 * features @ goal
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)
