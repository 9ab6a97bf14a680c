"""How long distilling will take on this machine, told before it starts: measured on a few steps, then counted."""

from __future__ import annotations

import time

from medistill.distil import loop
from medistill.distil.method import Method, State
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key

FEW = 20
"""Steps for which nothing is measured: they are done as soon."""


def learning_seconds(
    method: Method,
    problem: DistillationProblem,
    key: Key,
    state: State,
    strata_per_piece: int | None,
    optimiser: Optimiser,
) -> float:
    """Seconds that the steps which are left take; arguments as for ``loop.run``, whose state stays as it is.

    A step that does not count comes first, as it fetches memory; then one of each kind. 0 where few steps are left.
    """
    steps, first = method.steps(problem), state.step
    if steps - first < FEW:
        return 0.0
    trial, seconds = state.clone(), 0.0
    for count, step in ((0, first), *method.kinds_of_steps(problem, first)):
        trial.step, started = step, time.monotonic()
        loop.run(method, problem, key, trial, None, strata_per_piece, None, optimiser, until=step + 1)
        seconds += count * (time.monotonic() - started)
    return seconds
