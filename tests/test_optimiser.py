"""What takes a step down a gradient, beside torch's own."""

import pytest
import torch

from medistill.config import OptimiserConfig
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.optimiser import Optimiser
from medistill.keys import Key
from medistill.testing import small_problem

STEPS = 12


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_steps_are_those_of_torch(name, schedule):
    ours, theirs = torch.tensor([0.9, -0.7]), torch.tensor([0.9, -0.7], requires_grad=True)
    optimiser = Optimiser(name, learning_rate=0.1, momentum=0.6, schedule=schedule)
    made = {
        "sgd": torch.optim.SGD([theirs], 0.1, momentum=0.6),
        "adam": torch.optim.Adam([theirs], 0.1, (0.6, 0.999)),
    }
    torchs = made[name]
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(torchs, STEPS)
    buffers = optimiser.buffers({"x": ours})
    for step in range(STEPS):
        gradient = 4 * ours**3 - ours
        ours -= (
            optimiser.learning_rate
            * optimiser.decay(step / STEPS)
            * optimiser.direction(buffers, "x", gradient, step)
        )
        torchs.zero_grad()
        (theirs**4 - theirs**2 / 2).sum().backward()
        torchs.step()
        if schedule == "cosine":
            annealing.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-5)


def test_the_loop_follows_the_schedule():
    problem, key = small_problem(2), Key(0)

    def run(steps, optimiser, state=None):
        method = make_method({"name": "dm", "iterations": steps, "networks": 2, "filters": 8, "real_batch": 8})
        return loop.run(
            method, problem, key, state or loop.start(method, problem, key, optimiser), optimiser=optimiser
        )

    annealed = run(2, Optimiser(learning_rate=2.0, schedule="cosine"))
    first = run(1, Optimiser(learning_rate=2.0))
    then = run(2, Optimiser(learning_rate=1.0), first)
    assert torch.equal(annealed.images, then.images)


def test_another_kind_keeps_the_schedule_and_brings_its_rate():
    own = Optimiser(learning_rate=5.0, schedule="cosine")
    assert own.configured(OptimiserConfig(name="adam")) == Optimiser("adam", 0.05, 0.5, "cosine")
    assert own.configured(OptimiserConfig(schedule="constant")) == Optimiser(learning_rate=5.0)
