"""DC and DSA against the paper written out, and what theory says of their loss."""

import sys
from pathlib import Path

import pytest
import torch

from medistill.augment import siamese
from medistill.distil.matching import characteristic_distance, gradient_distance
from medistill.distil.method import make_method
from medistill.distil.methods.dc import LOOPS, published_loops
from medistill.distil.problem import Problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import reference_dc

SETTINGS = {"iterations": 2, "outer_loops": 2, "inner_loops": 2, "filters": 5, "real_batch": 6, "network_batch": 4}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Double(Problem):
    def of_class(self, label, rows=None):
        return super().of_class(label, rows).double()


def _problem():
    problem = small_problem(3, size=28, images=30)
    return Double(**{f: getattr(problem, f) for f in problem.__dataclass_fields__})


def _model(problem, parameters):
    model = reference_dc.convnet(1, 28, problem.classes, SETTINGS["filters"])
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters.values(), strict=True):
            own.copy_(given)
    return model


def _theirs(problem, model, images, key, step, augment):
    here = [key.child("step", step, c) for c in range(problem.classes)]
    changes = [siamese(k.child("augment").generator(), problem.flips) for k in here]
    made = [images[problem.made(c)] for c in range(problem.classes)]
    real = [problem.of_class(c, problem.draw(c, 6, here[c].child("real"))) for c in range(problem.classes)]
    return reference_dc.loss(model, made, real, (lambda c, x: changes[c](x)) if augment else (lambda c, x: x))


@pytest.mark.parametrize(("name", "augment"), [("dc", False), ("dsa", True)])
def test_equals_the_obvious_loop(name, augment, double):
    """Oracle in float64: loss and image gradient, at a new network and after training it on the images."""
    problem, key = _problem(), Key(3)
    method = make_method({"name": name, **SETTINGS})
    state = method.setup(problem, key)
    state.images = state.images.double()
    model = _model(problem, ConvNet(*problem.shape, problem.classes, 5).parameters(key.child("network", 0)))
    for step in (0, 1):
        state.step = step
        images = state.images.detach().clone().requires_grad_(True)
        state.images = images
        ours = method.loss(state, problem, range(problem.classes), key)
        (our_gradient,) = torch.autograd.grad(ours, images)
        theirs = _theirs(problem, model, images, key, step, augment)
        (their_gradient,) = torch.autograd.grad(theirs, images)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        assert (our_gradient - their_gradient).norm() <= 1e-6 * their_gradient.norm()
        if step == 0:
            state.images = images.detach()
            with torch.no_grad():
                method.after_update(state, problem, key)
            batches = []
            for epoch in range(2):
                here = key.child("inner", 0, epoch)
                order = torch.randperm(len(images), generator=here.generator())
                for number, rows in enumerate(order.split(4)):
                    change = siamese(here.child("augment", number).generator(), problem.flips)
                    x = state.images[rows]
                    batches.append((change(x) if augment else x, state.labels[rows]))
            reference_dc.train(model, batches, 0.01)


def test_loss_does_not_see_the_size_of_a_gradient(double):
    generator = Key(0).generator()
    first = [torch.randn(4, 3, 3, 3, generator=generator), torch.randn(2, 7, generator=generator)]
    second = [torch.randn(t.shape, generator=generator) for t in first]
    plain = gradient_distance(first, second, eps=0)
    assert torch.allclose(plain, gradient_distance(first, [1000 * t for t in second], eps=0))
    assert torch.allclose(gradient_distance(first, [5 * t for t in first], eps=0), torch.zeros(()), atol=1e-12)
    assert torch.allclose(gradient_distance(first, [-t for t in first], eps=0), torch.tensor(12.0))


def test_published_loops_and_between_them():
    for ipc, loops in LOOPS.items():
        assert published_loops(ipc) == loops
    assert published_loops(2) == (2, 6) and published_loops(1000) == (1000, 2)
    assert all(published_loops(n)[1] >= 1 for n in range(1, 300))


def test_each_network_is_met_for_the_outer_loops():
    problem = small_problem(10)
    method = make_method({"name": "dc", "iterations": 3})
    assert method.loops(problem) == (10, 50) and method.steps(problem) == 30


def test_one_image_per_class_with_augmentation():
    # The reference program stops with an error here.
    from medistill.distil import loop

    problem = small_problem(1)
    method = make_method({"name": "dsa", **SETTINGS})
    state = loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    assert torch.isfinite(state.images).all() and state.step == 4


def test_characteristic_distance_is_zero_for_equals_and_known_otherwise(double):
    values = torch.randn(10, generator=Key(0).generator())
    assert characteristic_distance(values, values, 0.3).abs() < 1e-9
    other = torch.randn(10, generator=Key(1).generator())
    assert torch.allclose(characteristic_distance(values, other, 0.5), (values - other).square().sum() / 10)
    # Amplitude alone does not see a turned phase.
    turned = torch.cat([-values[5:], values[:5]])
    assert characteristic_distance(values, turned, 1.0).abs() < 1e-9


def test_ncfm_equals_the_obvious_sum(double):
    problem, key = _problem(), Key(2)
    method = make_method(
        {"name": "ncfm", "networks": 2, "filters": 5, "real_batch": 6, "frequencies": 7, "augment": False}
    )
    state = method.setup(problem, key)
    state.memory = {k: v.double() if v.is_floating_point() else v for k, v in state.memory.items()}
    images = state.images.double().requires_grad_(True)
    state.images = images
    ours = method.loss(state, problem, range(problem.classes), key)
    here = key.child("network", 0)
    network = ConvNet(*problem.shape, problem.classes, 5)
    parameters = network.parameters(here)
    frequencies = 3 * torch.randn(network.embedding_size, 7, generator=here.child("statistic").generator())
    theirs = torch.zeros(())
    for label in range(problem.classes):
        real = problem.of_class(label, problem.draw(label, 6, here.child("real", label)))
        for t in frequencies.T:
            sides = []
            for group in (images[problem.made(label)], real):
                values = [
                    torch.exp(1j * (t @ (e := network.embed(parameters, x[None])[0]) / e.norm())) for x in group
                ]
                sides.append(torch.stack(values).mean())
            r, s = sides[0].abs(), sides[1].abs()
            angle = sides[0].angle() - sides[1].angle()
            theirs = theirs + (0.5 * (r - s) ** 2 + 0.5 * 2 * r * s * (1 - angle.cos())) / 7
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    (mine,), (other,) = torch.autograd.grad(ours, images), torch.autograd.grad(theirs, images)
    assert (mine - other).norm() <= 1e-6 * other.norm()
