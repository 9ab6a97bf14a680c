"""Random real images: what every method has to beat."""

from __future__ import annotations

from torch import Tensor

from medistill.distil.method import Coreset, MethodInfo, register
from medistill.distil.problem import Problem
from medistill.keys import Key


@register
class Random(Coreset):
    """Random images of each class, without replacement. These are real patient images."""

    info = MethodInfo("random", "Random real images", 1, "coreset", "seconds", "")

    def choose(self, problem: Problem, label: int, count: int, key: Key) -> Tensor:
        return problem.draw(label, count, key)
