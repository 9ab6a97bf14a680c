"""The one loop that learns images; nothing else moves them.

Every step depends on the state and the key alone, so a run that was stopped goes on to the
same bytes, and dividing the strata among several pieces of work changes no draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medistill.distil.group import Group
from medistill.distil.method import IMAGES, LABELS, Gradients, Method, State
from medistill.distil.optimiser import Optimiser
from medistill.distil.private_images import PrivateRealImages
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Advance
from medistill.errors import MedistillError
from medistill.keys import Key
from medistill.parallel import StepSharing, one_thread, parts

AfterStep = Callable[[State, list[float]], None]
"""Told the state and the losses of the steps since it was last told."""

SYNC_INTERVAL = {"cpu": 1, "cuda": 10}
"""Steps after which a device is asked how it went: asking a GPU waits until it has done all it was given."""


class DivergenceError(MedistillError):
    """The images stopped being numbers."""


def start(
    method: Method,
    problem: DistillationProblem,
    key: Key,
    optimiser: Optimiser | None = None,
    advance: Advance = lambda images: None,
) -> State:
    """The state before the first step, in the stored size, with the optimiser at rest.

    Private real images have answered then, once; ``advance`` is told how many of them were seen.
    """
    problem = problem.queried_by(method.queries)
    with one_thread():
        state = method.setup(problem, key.child("setup"))
        if isinstance(problem.real, PrivateRealImages):
            method.release(state, problem, problem.real, key, advance)
            problem.real.close()
        state.images = problem.encode(state.images)
    if method.steps(problem):
        state.buffers |= (optimiser or method.optimiser(problem)).buffers(_learned(state))
    return state


@one_thread()
def run(
    method: Method,
    problem: DistillationProblem,
    key: Key,
    state: State,
    after_step: AfterStep | None = None,
    strata_per_piece: int | None = None,
    group: Group | None = None,
    optimiser: Optimiser | None = None,
    until: int | None = None,
    sharing: StepSharing | None = None,
) -> State:
    """Take the steps that are left.

    Args:
        method: the method.
        problem: what to distil.
        key: as for :func:`start`.
        state: from :func:`start`, or from a checkpoint of the same run; changed in place.
        after_step: called after each step, on a GPU after several; whatever it raises stops the run.
        strata_per_piece: of work; fewer take less memory and give the same images but for rounding. None: as many as
            the method says, on a GPU all. Where the loss couples all strata they stay together.
        group: processes that share the work; this one takes its own strata.
        optimiser: instead of the method's own.
        until: number of the last step to take, counted from 1; all, if None.
        sharing: how workers share steps, where that was begun outside.

    Returns:
        The state after the last step.

    Raises:
        DivergenceError: the images became NaN or infinite.
    """
    problem = problem.queried_by(method.queries)
    low, high = problem.bounds
    optimiser = optimiser or method.optimiser(problem)
    steps, rate = method.steps(problem), optimiser.learning_rate
    rates = {IMAGES: rate, LABELS: method.label_rate()}
    group = group or Group()
    pieces = _pieces(method, problem, problem.present(group.assigned(problem.strata)), strata_per_piece)
    every = SYNC_INTERVAL[problem.device.type]
    losses: list[Tensor] = []
    last = steps if until is None else min(until, steps)
    sharing = sharing or StepSharing(problem.workers)
    while state.step < last:
        with sharing.step():
            total, gradients, extra = _gradients(method, problem, key, state, pieces)
            group.add([*gradients.values(), *extra.values(), total])
            learned, decay = _learned(state), optimiser.decay(state.step / steps)
            with torch.no_grad():
                for name, tensor in learned.items():
                    direction = optimiser.direction(state.buffers, name, gradients[name], state.step)
                    tensor.sub_(rates[name] * decay * direction)
                # Pixels stay displayable, so that what is shared is what was learned.
                state.images.clamp_(low, high)
                method.after_update(_as_seen(state, problem), problem, key, extra)
        state.step += 1
        losses.append(total)
        if len(losses) < every and state.step < last:
            continue
        if not torch.isfinite(state.images).all():
            raise DivergenceError(
                f"images became NaN {'at' if every == 1 else 'by'} step {state.step}",
                where=method.info.name,
                remedy=f"lower optimiser.learning_rate (now {rate:g}) and run with --overwrite",
            )
        if after_step is not None:
            after_step(state, torch.stack(losses).tolist())
        losses = []
    return state


def _pieces(
    method: Method, problem: DistillationProblem, strata: Sequence[int], strata_per_piece: int | None
) -> list[Sequence[int]]:
    """The strata in the pieces in which their losses are computed; one piece where the loss is of all together."""
    size = strata_per_piece or method.strata_per_piece(problem)
    if method.info.couples_classes:
        return [strata] if strata else []
    return [strata[part] for part in parts(len(strata), size)] if strata else []


def _gradients(
    method: Method, problem: DistillationProblem, key: Key, state: State, pieces: Sequence[Sequence[int]]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients by what is learned as it is stored, and further ones, summed over pieces in their order."""
    total = torch.zeros((), dtype=torch.float64, device=problem.device)
    sums: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    stored = state.images.detach().requires_grad_(True)
    with torch.enable_grad():
        decoded = problem.decode(stored)
    # Before the pieces ask, so that what they keep for later steps is kept in one place.
    buffers = dict(state.buffers)

    def of(strata: Sequence[int]) -> Gradients:
        logits = None if state.label_logits is None else state.label_logits.detach()
        view = replace(state, images=decoded.detach(), label_logits=logits, buffers=buffers)
        observed = method.observe(view, problem, strata, key)
        found = method.gradients(view, observed, problem, strata, key)
        if found.images is None or len(pieces) == 1:
            return found
        # Those of many pieces wait to be added, so each keeps what is of its own strata.
        return replace(found, images=found.images[problem.rows(strata)])

    # A piece within which others are divided is done here, so that workers are left for them.
    found = problem.workers.map(of, pieces) if len(pieces) > 1 else map(of, pieces)
    for strata, gradients in zip(pieces, found, strict=True):
        total += gradients.loss
        if gradients.images is not None and len(pieces) == 1:
            sums[IMAGES] = gradients.images.clone()
        elif gradients.images is not None:
            if IMAGES not in sums:
                sums[IMAGES] = torch.zeros_like(decoded)
            sums[IMAGES][problem.rows(strata)] += gradients.images
        if gradients.labels is not None:
            sums[LABELS] = sums[LABELS].add_(gradients.labels) if LABELS in sums else gradients.labels.clone()
        for name, gradient in gradients.extra.items():
            extra[name] = extra[name] + gradient if name in extra else gradient
    state.buffers = buffers
    if IMAGES in sums and decoded is not stored:
        sums[IMAGES] = torch.autograd.grad(decoded, stored, sums[IMAGES])[0]
    # A process may be left without a stratum, where there are more processes than strata.
    learned = _learned(state)
    return total, {n: sums[n] if n in sums else torch.zeros_like(t) for n, t in learned.items()}, extra


def _learned(state: State) -> dict[str, Tensor]:
    """What is learned, by name: the images, and labels where they are."""
    return {IMAGES: state.images} | ({} if state.label_logits is None else {LABELS: state.label_logits})


def _as_seen(state: State, problem: DistillationProblem) -> State:
    """The state with its images as networks see them; what hooks keep in its buffers stays."""
    return replace(state, images=problem.decode(state.images))
