"""The one loop that learns images; nothing else runs backward on them.

Every step depends on the state and the key alone, so a run that was stopped goes on to the
same bytes, and dividing the classes among several backward passes changes no draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medistill.distil.group import Group
from medistill.distil.method import Method, State
from medistill.distil.problem import Problem
from medistill.errors import MedistillError
from medistill.keys import Key

AfterStep = Callable[[State, list[float]], None]
"""Told the state and the losses of the steps since it was last told."""

TOLD_AT_ONCE = {"cpu": 1, "cuda": 10}
"""Steps after which a device is asked how it went: asking a GPU waits until it has done all it was given."""


LABELS = ".labels"
"""How names in the memory end that belong to the labels being learned."""

DECAY = 0.999
"""Of Adam's mean of squared gradients."""


class DivergenceError(MedistillError):
    """The images stopped being numbers."""


def start(method: Method, problem: Problem, key: Key) -> State:
    """The state before the first step, in the stored size, with the momentum at rest."""
    state = method.setup(problem, key.child("setup"))
    state.images = problem.encode(state.images)
    for name, learned in _learned(state).items():
        state.memory[f"momentum{name}"] = torch.zeros_like(learned)
        if method.optimiser == "adam":
            state.memory[f"square{name}"] = torch.zeros_like(learned)
    return state


def run(
    method: Method,
    problem: Problem,
    key: Key,
    state: State,
    after_step: AfterStep | None = None,
    classes_per_backward: int | None = None,
    group: Group | None = None,
) -> State:
    """Take the steps that are left.

    Args:
        method: loss and hyperparameters.
        problem: the training images.
        key: randomness of the whole run.
        state: from :func:`start` or a checkpoint; changed in place.
        after_step: called after every step, on a GPU after every tenth and the last.
        classes_per_backward: fewer need less memory; None takes all at once.
        group: processes that take the same steps from the same state, each with a share of the classes.

    Raises:
        DivergenceError: an image became NaN or infinite.
    """
    low, high = problem.bounds
    steps, rate = method.steps(problem), method.image_learning_rate(problem)
    rates = {"": rate, LABELS: method.label_rate()}
    group = group or Group()
    own = group.own(problem.classes)
    every = TOLD_AT_ONCE[problem.device.type]
    losses: list[Tensor] = []
    while state.step < steps:
        learned = _learned(state)
        for tensor in learned.values():
            tensor.requires_grad_(True)
        total = torch.zeros((), dtype=torch.float64, device=problem.device)
        for classes in _chunks(own, None if method.info.joint else classes_per_backward):
            loss = method.loss(_seen(state, problem), problem, classes, key)
            # Networks' parameters may have gradients within a loss, but nobody asks for its gradient by them.
            loss.backward(inputs=list(learned.values()))  # type: ignore[no-untyped-call]
            total += loss.detach()
        # A process may be left without a class, where there are more processes than classes.
        gradients = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in learned.items()}
        group.add([*gradients.values(), total])
        with torch.no_grad():
            for name, tensor in learned.items():
                gradient, tensor.grad = gradients[name], None
                tensor.requires_grad_(False).sub_(rates[name] * _direction(method, state, name, gradient))
            # Pixels stay displayable, so that what is shared is what was learned.
            state.images.clamp_(low, high)
            method.after_update(_seen(state, problem), problem, key)
        state.step += 1
        losses.append(total)
        if len(losses) < every and state.step < steps:
            continue
        if not torch.isfinite(state.images).all():
            raise DivergenceError(
                f"images became NaN {'at' if every == 1 else 'by'} step {state.step}",
                where=method.info.name,
                remedy=f"lower method.learning_rate (now {rate:g}) and run with --fresh",
            )
        if after_step is not None:
            after_step(state, torch.stack(losses).tolist())
        losses = []
    return state


def _learned(state: State) -> dict[str, Tensor]:
    """What is learned, by the ending of its names in the memory: the images, and labels where they are."""
    return {"": state.images} | ({} if state.label_scores is None else {LABELS: state.label_scores})


def _direction(method: Method, state: State, name: str, gradient: Tensor) -> Tensor:
    """Where the optimiser goes, before it is multiplied by the learning rate; its memory is brought up to date."""
    momentum = state.memory[f"momentum{name}"]
    if method.optimiser == "sgd":
        return momentum.mul_(method.momentum).add_(gradient)
    momentum.mul_(method.momentum).add_(gradient, alpha=1 - method.momentum)
    square = state.memory[f"square{name}"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
    done = state.step + 1
    return (momentum / (1 - method.momentum**done)) / ((square / (1 - DECAY**done)).sqrt() + 1e-8)


def _seen(state: State, problem: Problem) -> State:
    """The state with its images as networks see them; what hooks keep in its memory stays."""
    return replace(state, images=problem.decode(state.images))


def _chunks(classes: range, size: int | None) -> Iterator[Sequence[int]]:
    size = size or max(1, len(classes))
    return (classes[i : i + size] for i in range(0, len(classes), size))
