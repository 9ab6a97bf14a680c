"""The one loop that learns images; nothing else runs backward on them.

Every step depends on the state and the key alone, so a run that was stopped goes on to the
same bytes, and dividing the classes among several backward passes changes no draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from medistill.distil.method import Method, State
from medistill.distil.problem import Problem
from medistill.errors import MedistillError
from medistill.keys import Key

AfterStep = Callable[[State, float], None]


class DivergenceError(MedistillError):
    """The images stopped being numbers."""


def start(method: Method, problem: Problem, key: Key) -> State:
    """The state before the first step, with the momentum at rest."""
    state = method.setup(problem, key.child("setup"))
    state.memory["momentum"] = torch.zeros_like(state.images)
    return state


def run(
    method: Method,
    problem: Problem,
    key: Key,
    state: State,
    after_step: AfterStep | None = None,
    classes_per_backward: int | None = None,
) -> State:
    """Take the steps that are left.

    Args:
        method: loss and hyperparameters.
        problem: the training images.
        key: randomness of the whole run.
        state: from :func:`start` or a checkpoint; changed in place.
        after_step: called with the state and the loss after every step.
        classes_per_backward: fewer need less memory; None takes all at once.

    Raises:
        DivergenceError: an image became NaN or infinite.
    """
    low, high = problem.bounds
    steps, rate = method.steps(problem), method.image_learning_rate(problem)
    while state.step < steps:
        state.images.requires_grad_(True)
        total = 0.0
        for classes in _chunks(problem.classes, None if method.info.joint else classes_per_backward):
            loss = method.loss(state, problem, classes, key)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        gradient, state.images.grad = state.images.grad, None
        assert gradient is not None
        with torch.no_grad():
            state.images.requires_grad_(False)
            velocity = state.memory["momentum"].mul_(method.momentum).add_(gradient)
            # Pixels stay displayable, so that what is shared is what was learned.
            state.images.sub_(rate * velocity).clamp_(low, high)
            method.after_update(state, problem, key)
        state.step += 1
        if not torch.isfinite(state.images).all():
            raise DivergenceError(
                f"images became NaN at step {state.step}",
                where=method.info.name,
                remedy=f"lower method.learning_rate (now {rate:g}) and run with --fresh",
            )
        if after_step is not None:
            after_step(state, total)
    return state


def _chunks(classes: int, size: int | None) -> Iterator[range]:
    size = size or classes
    return (range(i, min(i + size, classes)) for i in range(0, classes, size))
