"""DC and DSA against the paper written out, and what theory says of their loss."""

import pytest
import torch

from medistill.augment import siamese
from medistill.distil import loop
from medistill.distil.matching import characteristic_distance, gradient_distance
from medistill.distil.method import make_method
from medistill.distil.methods.dc import published_loops
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem
from problems import drawn, float64, step
from reference import characteristic_functions, gradient_matching

SETTINGS = {"iterations": 2, "outer_loops": 2, "inner_loops": 2, "filters": 5, "real_batch": 6, "network_batch": 4}
ERRORS = {"classes": gradient_matching.cross_entropy, "findings": gradient_matching.binary_cross_entropy}


def new_model(problem, key):
    """The network of torch's modules with the parameters of ours."""
    model = gradient_matching.convnet(1, 28, problem.outputs, SETTINGS["filters"])
    network = ConvNet(problem.channels, problem.shape, problem.outputs, SETTINGS["filters"])
    with torch.no_grad():
        for own, given in zip(model.parameters(), network.parameters(key).values(), strict=True):
            own.copy_(given)
    return model


def obvious_loss(problem, model, images, key, number, augment, error):
    here = [key.child("step", number, s) for s in range(problem.strata)]
    augmentations = [siamese(k.child("augment").generator(), problem.normalisation.flips) for k in here]
    rows = [problem.synthetic(s) for s in range(problem.strata)]
    synthetic = [(images[r], problem.targets[r]) for r in rows]
    real = [drawn(problem, s, 6, here[s].child("real")) for s in range(problem.strata)]
    change = (lambda s, x: augmentations[s](x)) if augment else (lambda s, x: x)
    return gradient_matching.loss(model, synthetic, real, change, error)


def inner_batches(problem, images, key, augment):
    """What the network is trained on after its first step."""
    for epoch in range(2):
        here = key.child("inner", 0, epoch)
        order = torch.randperm(len(images), generator=here.generator())
        for number, rows in enumerate(order.split(4)):
            change = siamese(here.child("augment", number).generator(), problem.normalisation.flips)
            yield change(images[rows]) if augment else images[rows], problem.targets[rows]


@pytest.mark.parametrize("task", sorted(ERRORS))
@pytest.mark.parametrize(("name", "augment"), [("dc", False), ("dsa", True)])
@float64()
def test_equals_the_obvious_loop(name, augment, task):
    """Oracle in float64: loss and image gradient, at a new network and after training it on the images."""
    problem, key, error = small_problem(3, size=28, images=30, task=task), Key(3), ERRORS[task]
    method = make_method({"name": name, **SETTINGS})
    state = method.setup(problem, key)
    model = new_model(problem, key.child("network", 0))
    for number in (0, 1):
        state.step = number
        ours = step(method, state, problem, key)
        images = state.images.detach().clone().requires_grad_(True)
        theirs = obvious_loss(problem, model, images, key, number, augment, error)
        (their_gradient,) = torch.autograd.grad(theirs, images)
        assert ours.images.dtype == torch.float64
        assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
        assert (ours.images - their_gradient).norm() <= 1e-6 * their_gradient.norm()
        if number == 0:
            with torch.no_grad():
                method.after_update(state, problem, key, {})
            gradient_matching.train(model, list(inner_batches(problem, state.images, key, augment)), 0.01, error)


@float64()
def test_loss_does_not_see_the_size_of_a_gradient():
    generator = Key(0).generator()
    first = [torch.randn(4, 3, 3, 3, generator=generator), torch.randn(2, 7, generator=generator)]
    second = [torch.randn(t.shape, generator=generator) for t in first]
    plain = gradient_distance(first, second, eps=0)
    assert torch.allclose(plain, gradient_distance(first, [1000 * t for t in second], eps=0))
    assert torch.allclose(gradient_distance(first, [5 * t for t in first], eps=0), torch.zeros(()), atol=1e-12)
    assert torch.allclose(gradient_distance(first, [-t for t in first], eps=0), torch.tensor(12.0))


def test_published_loops_and_between_them():
    published = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: published_loops(ipc) for ipc in published} == published
    assert published_loops(2) == (2, 6) and published_loops(1000) == (1000, 2)
    assert all(published_loops(n)[1] >= 1 for n in range(1, 300))


def test_each_network_is_met_for_the_outer_loops():
    problem = small_problem(10)
    method = make_method({"name": "dc", "iterations": 3})
    assert method.loops(problem) == (10, 50) and method.steps(problem) == 30


def test_one_image_per_class_with_augmentation():
    # The reference program stops with an error here.
    problem = small_problem(1)
    method = make_method({"name": "dsa", **SETTINGS})
    state = loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    assert torch.isfinite(state.images).all() and state.step == 4


@float64()
def test_characteristic_distance_is_zero_for_equals_and_known_otherwise():
    values = torch.randn(10, generator=Key(0).generator())
    assert characteristic_distance(values, values, 0.3).abs() < 1e-9
    other = torch.randn(10, generator=Key(1).generator())
    assert torch.allclose(characteristic_distance(values, other, 0.5), (values - other).square().sum() / 10)
    # Amplitude alone does not see a turned phase.
    turned = torch.cat([-values[5:], values[:5]])
    assert characteristic_distance(values, turned, 1.0).abs() < 1e-9


@float64()
def test_ncfm_equals_the_obvious_sum():
    problem, key = small_problem(3, size=28, images=30), Key(2)
    settings = {"networks": 2, "filters": 5, "real_batch": 6, "frequencies": 7, "amplitude": 0.3, "augment": False}
    method = make_method({"name": "ncfm", **settings})
    state = method.setup(problem, key)
    ours = step(method, state, problem, key)
    here, strata = key.child("network", 0), range(problem.strata)
    network = ConvNet(problem.channels, problem.shape, problem.outputs, 5)
    parameters = network.parameters(here)
    frequencies = 3 * torch.randn(network.embedding_size, 7, generator=here.child("statistic").generator())
    images = state.images.detach().clone().requires_grad_(True)
    theirs = characteristic_functions.loss(
        lambda x: network.embed(parameters, x),
        frequencies,
        [images[problem.synthetic(c)] for c in strata],
        [drawn(problem, c, 6, here.child("real", c))[0] for c in strata],
        0.3,
    )
    (their_gradient,) = torch.autograd.grad(theirs, images)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert (ours.images - their_gradient).norm() <= 1e-6 * their_gradient.norm()
