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
from medistill.distil import loop
from medistill.distil.experts import ExpertSettings, flatten, trajectory, unflatten
from medistill.distil.method import make_method
from medistill.distil.optimiser import Optimiser
from medistill.distil.real_images import RealImages
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem
from problems import float64, step
from reference import trajectory_matching

SETTINGS = {
    "name": "mtt", "iterations": 3, "experts": 2, "expert_epochs": 4, "expert_batch": 12, "latest_start": 2,
    "span": 2, "student_steps": 4, "student_batch": 4, "filters": 5, "step_size": 0.05,
}  # fmt: skip


def expert_of(problem, settings, key):
    return trajectory(problem, problem.real.queried_by(("training",)), settings, key)


@pytest.mark.parametrize("augment", [False, True])
@float64()
def test_equals_the_whole_graph(augment):
    """Oracle in float64: loss, image gradient and the step size's gradient."""
    problem, key = small_problem(2), Key(1)
    method = make_method({**SETTINGS, "augment": augment})
    state = method.setup(problem, key)
    state.step = 2
    ours = step(method, state, problem, key)

    here = key.child("step", 2)
    draw = here.numpy()
    expert = Key(key.seed).child("expert", int(draw.integers(2)))
    path = expert_of(problem, ExpertSettings(4, 0.01, 12, 5, None, augment), expert).double()
    first = int(draw.integers(3))
    network = ConvNet(problem.channels, problem.shape, problem.outputs, 5)
    like, labels = network.parameters(Key(0)), problem.targets.argmax(1)

    def error(place, images, number):
        own = here.child("student", number)
        rows = torch.randperm(len(images), generator=own.generator())[:4]
        x = images[rows]
        if augment:
            x = siamese(own.child("augment").generator(), problem.normalisation.flips)(x)
        return functional.cross_entropy(network.logits(unflatten(place, like), x), labels[rows])

    images = state.images.detach().clone().requires_grad_(True)
    size = torch.tensor(0.05, requires_grad=True)
    theirs = trajectory_matching.loss(error, images, size, path[first], path[first + 2], 4)
    by_image, by_size = torch.autograd.grad(theirs, (images, size))
    assert ours.images.dtype == torch.float64
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert (ours.images - by_image).norm() <= 1e-6 * by_image.norm()
    assert float(ours.extra["step_size"]) == pytest.approx(by_size.item(), rel=1e-6)


def test_a_student_that_does_not_move_has_loss_one():
    problem = small_problem(2)
    method = make_method({**SETTINGS, "step_size": 1e-30})
    assert float(step(method, method.setup(problem, Key(0)), problem, Key(0)).loss) == pytest.approx(1, abs=1e-6)


def updated(method, state, gradient):
    """The step size after an update by a gradient of it."""
    gradients = {"step_size": torch.tensor(gradient, dtype=torch.float64)}
    method.after_update(state, small_problem(1), Key(0), gradients)
    return float(state.buffers["step_size"])


def test_the_step_size_stays_positive_whatever_its_gradient():
    problem = small_problem(1)
    method = make_method({**SETTINGS, "step_size_learning_rate": 1.0})
    state = method.setup(problem, Key(0))
    for gradient in (1e9, -1e9, 1e9, 1e9):
        assert 0 < updated(method, state, gradient) < 100
    # A small change is what subtracting would have made.
    method = make_method({**SETTINGS, "step_size_learning_rate": 1e-5})
    assert updated(method, method.setup(problem, Key(0)), 2.0) == pytest.approx(0.05 - 2e-5, abs=1e-8)


def test_one_overshoot_does_not_end_the_learning():
    """A student that steps too far has an enormous slope; the step size shrinks, but not to nothing."""
    method = make_method({**SETTINGS, "step_size_learning_rate": 1e-2})
    state = method.setup(small_problem(1), Key(0))
    for number in range(1, 4):
        assert updated(method, state, 1e6) == pytest.approx(0.05 * math.exp(-0.1 * number))


def test_experts_come_from_the_cache_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    problem, settings = small_problem(1), ExpertSettings(2, 0.01, 12, 4, None, True)
    first = expert_of(problem, settings, Key(0))
    assert first.dtype == torch.float16 and len(first) == 3 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(RealImages, "training", lambda *_: pytest.fail("trained again"))
        assert torch.equal(first, expert_of(problem, settings, Key(0)))
    assert not torch.equal(first, expert_of(problem, settings, Key(1)))
    for kept in tmp_path.rglob("*.safetensors"):
        kept.write_bytes(b"damaged")
    assert torch.equal(first, expert_of(problem, settings, Key(0)))
    monkeypatch.setenv("MEDISTILL_CACHE", "/proc/none")
    assert torch.equal(first, expert_of(problem, settings, Key(0)))


def test_experts_of_other_data_or_another_task_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    settings = ExpertSettings(1, 0.01, 12, 4, None, False)
    problems = [small_problem(1), small_problem(1, seed=1), small_problem(1, task="findings")]
    paths = [expert_of(problem, settings, Key(0)) for problem in problems]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert all(torch.equal(path[0], paths[0][0]) for path in paths), "they start alike"
    assert not torch.equal(paths[0], paths[1]) and not torch.equal(paths[0], paths[2])


def test_experts_learn():
    problem = small_problem(1, images=120)
    path = expert_of(problem, ExpertSettings(12, 0.05, 16, 16, None, False), Key(0))
    network = ConvNet(problem.channels, problem.shape, problem.outputs, 16)
    like = network.parameters(Key(0))
    (every,) = problem.real.queried_by(("training",)).training(120, Key(0))
    images, labels = every.value.images, every.value.targets.argmax(1)
    losses = [
        float(functional.cross_entropy(network.logits(unflatten(place.float(), like), images), labels))
        for place in (path[0], path[-1])
    ]
    assert losses[1] < 0.8 * losses[0]


def test_vectors_and_parameters_are_one():
    parameters = ConvNet(1, (16, 16), 3, 4).parameters(Key(0))
    vector = flatten(parameters)
    again = unflatten(vector, parameters)
    assert len(vector) == sum(p.numel() for p in parameters.values())
    assert all(torch.equal(again[name], parameters[name]) for name in parameters)


def test_loss_falls():
    problem, optimiser = small_problem(2), Optimiser(learning_rate=50.0)
    method = make_method({**SETTINGS, "iterations": 30, "augment": False, "filters": 8})
    losses: list[float] = []
    start = loop.start(method, problem, Key(0), optimiser)
    loop.run(method, problem, Key(0), start, lambda _s, told: losses.extend(told), optimiser=optimiser)
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
    optimiser = Optimiser(learning_rate=10.0)
    start = loop.start(method, problem, Key(0), optimiser)
    loop.run(method, problem, Key(0), start, optimiser=optimiser)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
