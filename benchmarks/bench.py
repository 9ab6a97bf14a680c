"""Distribution matching: ours against the plain reference loop, alternating, in one process.

Both take the same problem, networks of the same width and real batches of the same size.
Printed are ratios of steps per second, each the median of alternating rounds with its
range, for our loop as published (a new network at each step) and with the pool.
"""

from __future__ import annotations

import statistics
import sys
import time

import reference_dm
import torch

from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.keys import Key
from medistill.runtime import prepare_torch
from medistill.testing import small_problem

ROUNDS, STEPS, FILTERS, BATCH = 5, 6, 64, 32


def reference(problem, steps: int) -> float:
    """Seconds per step of the plain loop."""
    images = problem.random_images(Key(0)).requires_grad_(True)
    optimiser = torch.optim.SGD([images], lr=1.0, momentum=0.5)
    started = time.perf_counter()
    for step in range(steps):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            model = reference_dm.convnet(problem.shape[0], problem.shape[1], FILTERS)
        real = [problem.of_class(c, problem.draw(c, BATCH, Key(step).child(c))) for c in range(problem.classes)]
        made = [images[problem.made(c)] for c in range(problem.classes)]
        loss = reference_dm.loss(model, made, real, lambda _c, x: x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (time.perf_counter() - started) / steps


def ours(problem, steps: int, networks: int) -> float:
    """Seconds per step of the loop, targets included."""
    method = make_method(
        {"name": "dm", "iterations": steps, "networks": networks, "filters": FILTERS, "real_batch": BATCH}
        | {"augment": False}
    )
    state = loop.start(method, problem, Key(0))
    started = time.perf_counter()
    loop.run(method, problem, Key(0), state)
    return (time.perf_counter() - started) / steps


def main() -> None:
    prepare_torch()
    problem = small_problem(10, size=28, images=150)
    rows: dict[str, list[float]] = {"new network each step": [], "pool of 2, met three times": []}
    for _ in range(ROUNDS):
        plain = reference(problem, STEPS)
        rows["new network each step"].append(plain / ours(problem, STEPS, 0))
        rows["pool of 2, met three times"].append(plain / ours(problem, STEPS, 2))
    for name, ratios in rows.items():
        middle = statistics.median(ratios)
        sys.stdout.write(f"{name}: {middle:.1f} times the reference ({min(ratios):.1f} to {max(ratios):.1f})\n")


if __name__ == "__main__":
    main()
