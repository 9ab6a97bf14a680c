"""MTT against the whole graph, what theory says of its loss, and its known troubles."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medistill.augment import siamese
from medistill.distil import experts, loop
from medistill.distil.experts import ExpertSettings, flatten, trajectory, unflatten
from medistill.distil.method import make_method
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import reference_mtt

SETTINGS = {
    "name": "mtt", "iterations": 3, "learning_rate": 10.0, "experts": 2, "expert_epochs": 4, "expert_batch": 12,
    "latest_start": 2, "span": 2, "student_steps": 4, "student_batch": 4, "filters": 5, "step_size": 0.05,
}  # fmt: skip


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("augment", [False, True])
def test_equals_the_whole_graph(augment, double):
    """Oracle in float64: loss, image gradient and the step size's gradient."""
    problem, key = small_problem(2), Key(1)
    method = make_method({**SETTINGS, "augment": augment})
    state = method.setup(problem, key)
    state.images, state.step = state.images.double().requires_grad_(True), 2
    ours = method.loss(state, problem, range(problem.classes), key)
    (our_gradient,) = torch.autograd.grad(ours, state.images)

    here = key.child("step", 2)
    draw = here.numpy()
    path = method._trajectory(problem, key, int(draw.integers(2)))
    first = int(draw.integers(3))
    network = ConvNet(*problem.shape, problem.classes, 5)
    like = network.parameters(Key(0))

    def error(place, images, step):
        own = here.child("student", step)
        rows = torch.randperm(len(images), generator=own.generator())[:4]
        x = images[rows]
        if augment:
            x = siamese(own.child("augment").generator(), problem.flips)(x)
        return functional.cross_entropy(network.logits(unflatten(place, like), x), state.labels[rows])

    images = state.images.detach().clone().requires_grad_(True)
    size = torch.tensor(0.05, requires_grad=True)
    theirs = reference_mtt.loss(error, images, size, path[first].double(), path[first + 2].double(), 4)
    by_image, by_size = torch.autograd.grad(theirs, (images, size))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert (our_gradient - by_image).norm() <= 1e-6 * by_image.norm()
    assert float(state.memory["step_size_gradient"]) == pytest.approx(by_size.item(), rel=1e-6)


def test_a_student_that_does_not_move_has_loss_one():
    problem = small_problem(2)
    method = make_method({**SETTINGS, "step_size": 1e-30})
    state = method.setup(problem, Key(0))
    assert float(method.loss(state, problem, range(3), Key(0))) == pytest.approx(1, abs=1e-6)


def test_the_step_size_stays_positive_whatever_its_gradient():
    problem = small_problem(1)
    method = make_method({**SETTINGS, "step_size_learning_rate": 1.0})
    state = method.setup(problem, Key(0))
    for gradient in (1e9, -1e9, 1e9, 1e9):
        state.memory["step_size_gradient"] = torch.tensor(gradient, dtype=torch.float64)
        method.after_update(state, problem, Key(0))
        assert 0 < float(state.memory["step_size"]) < 100
    # A small change is what subtracting would have made.
    method = make_method({**SETTINGS, "step_size_learning_rate": 1e-5})
    state = method.setup(problem, Key(0))
    state.memory["step_size_gradient"] = torch.tensor(2.0, dtype=torch.float64)
    method.after_update(state, problem, Key(0))
    assert float(state.memory["step_size"]) == pytest.approx(0.05 - 2e-5, abs=1e-8)


def test_one_overshoot_does_not_end_the_learning():
    """A student that steps too far has an enormous slope; the step size shrinks, but not to nothing."""
    problem = small_problem(1)
    method = make_method({**SETTINGS, "step_size_learning_rate": 1e-2})
    state = method.setup(problem, Key(0))
    for step in range(1, 4):
        state.memory["step_size_gradient"] = torch.tensor(1e6, dtype=torch.float64)
        method.after_update(state, problem, Key(0))
        assert float(state.memory["step_size"]) == pytest.approx(0.05 * math.exp(-0.1 * step))


def test_experts_come_from_the_cache_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    problem, settings = small_problem(1), ExpertSettings(2, 0.01, 12, 4, 0, True)
    first = trajectory(problem, settings, Key(0))
    assert first.dtype == torch.float16 and len(first) == 3 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    monkeypatch.setattr(experts, "_train", lambda *_: pytest.fail("trained again"))
    assert torch.equal(first, trajectory(problem, settings, Key(0)))
    monkeypatch.undo()
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    assert not torch.equal(first, trajectory(problem, settings, Key(1)))
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"damaged")
    assert torch.equal(first, trajectory(problem, settings, Key(0)))
    monkeypatch.setenv("MEDISTILL_CACHE", "/proc/none")
    assert torch.equal(first, trajectory(problem, settings, Key(0)))


def test_experts_learn():
    problem = small_problem(1, images=120)
    path = trajectory(problem, ExpertSettings(12, 0.05, 16, 16, 0, False), Key(0))
    network = ConvNet(*problem.shape, problem.classes, 16)
    like = network.parameters(Key(0))
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(problem.sizes))
    losses = [
        float(functional.cross_entropy(network.logits(unflatten(v.float(), like), problem.normalise(torch.from_numpy(problem.pixels))), labels))
        for v in (path[0], path[-1])
    ]  # fmt: skip
    assert losses[1] < 0.8 * losses[0]


def test_vectors_and_parameters_are_one():
    parameters = ConvNet(1, 16, 16, 3, 4).parameters(Key(0))
    again = unflatten(flatten(parameters), parameters)
    assert all(torch.equal(again[name], parameters[name]) for name in parameters)


def test_loss_falls():
    problem = small_problem(2)
    method = make_method({**SETTINGS, "iterations": 30, "augment": False, "filters": 8, "learning_rate": 50.0})
    losses: list[float] = []
    loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)), lambda _s, told: losses.extend(told))
    assert sum(losses[-8:]) < sum(losses[:8])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux gives it")
def test_memory_does_not_grow_with_the_student_s_steps():
    code = (
        "import sys, resource; sys.path[:0] = {path!r}; from test_trajectory_matching import peak; "
        "print(peak({steps}))"
    )
    peaks = []
    for steps in (2, 40):
        text = code.format(path=[str(Path(__file__).parent)], steps=steps)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 40, peaks


def peak(steps):
    """Peak memory in MiB of two iterations with that many student steps."""
    problem = small_problem(10, size=28, images=120)
    settings = {**SETTINGS, "iterations": 2, "student_steps": steps, "student_batch": 30, "filters": 32}
    method = make_method({**settings, "expert_epochs": 2, "span": 1, "experts": 1})
    loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
