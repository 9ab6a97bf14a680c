"""Random real images: what every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from medistill.distil.method import Coreset, MethodInfo, register
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key


@register
class Random(Coreset):
    """Random images of each class, without replacement. These are real patient images."""

    info = MethodInfo("random", "Random real images", 1, "coreset", "seconds", "", queries=("draw",))

    def choose(self, problem: DistillationProblem, stratum: int, count: int, key: Key) -> Tensor:
        order = torch.randperm(problem.real_per_stratum[stratum], generator=key.generator())
        return order[:count]
