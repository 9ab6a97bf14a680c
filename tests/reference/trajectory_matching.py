"""Trajectory matching, the plain way: every step of the student in one graph, differentiated as a whole.

Written from the paper (Cazenavette et al., CVPR 2022, algorithm 1 and equation 3) to be
obvious rather than sparing. It is the tests' oracle.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad


def loss(
    error: Callable[[Tensor, Tensor, int], Tensor],
    images: Tensor,
    step_size: Tensor,
    origin: Tensor,
    goal: Tensor,
    steps: int,
) -> Tensor:
    """Squared distance of the student from the expert's later parameters, as a share of the way there.

    Args:
        error: (parameters, images, step) → loss of the student on its batch of that step.
        images: synthetic images.
        step_size: of the student.
        origin, goal: the expert's parameters earlier and later, (p,).
        steps: of the student.
    """
    place = origin
    for step in range(steps):
        place = place - step_size * grad(error)(place, images, step)
    return (place - goal).square().sum() / (origin - goal).square().sum()
