"""How long distilling will take on this machine, told before it starts: measured on a few steps, then counted."""

from __future__ import annotations

import math
import time
from statistics import median_low

from medistill.distil import loop
from medistill.distil.method import Method, State
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key
from medistill.parallel import StepSharing

FEW = 20
"""Steps for which nothing is measured: they are done as soon."""

TRIALS, SHARE = 8, 0.04
"""Of each kind of step at most, and the share of the announced time after which no further one begins."""


def learning_seconds(
    method: Method,
    problem: DistillationProblem,
    key: Key,
    state: State,
    strata_per_piece: int | None,
    optimiser: Optimiser,
) -> float:
    """Seconds that the steps which are left take; arguments as for ``loop.run``, whose state stays as it is.

    A step that does not count comes first, as it fetches memory; then one of each kind. All that again, with workers
    sharing steps in the other way and then in the faster, while it takes little beside what is announced. 0 where few
    steps are left.
    """
    steps, first = method.steps(problem), state.step
    if steps - first < FEW:
        return 0.0
    kinds = [(0, first), *method.kinds_of_steps(problem, first)]
    taken: dict[bool, list[list[float]]] = {way: [[] for _ in kinds] for way in (False, True)}
    told, within, begun = {False: math.inf, True: math.inf}, False, time.monotonic()
    for _ in range(TRIALS):
        copy, sharing = state.clone(), StepSharing(problem.workers, within)
        for (_, step), seconds in zip(kinds, taken[within], strict=True):
            copy.step, started = step, time.monotonic()
            given = (method, problem, key, copy, None, strata_per_piece, None, optimiser)
            loop.run(*given, until=step + 1, sharing=sharing)
            seconds.append(time.monotonic() - started)
        told[within] = sum(count * median_low(own) for (count, _), own in zip(kinds, taken[within], strict=True))
        if time.monotonic() - begun > SHARE * min(told.values()):
            break
        within = told[True] < told[False] or (problem.workers.number > 1 and not taken[True][0])
    return min(told.values())
