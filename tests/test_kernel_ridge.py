"""FRePo against its formula."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medistill.augment import siamese
from medistill.distil import loop
from medistill.distil.matching import ridge_prediction
from medistill.distil.method import make_method
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem
from test_methods import _as_double, _double

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import reference_frepo

SMALL = {"name": "frepo", "iterations": 9, "networks": 2, "filters": 6, "real_batch": 12, "ridge": 1e-3}


def test_ridge_equals_a_direct_solve():
    """The primal solution, (F'F + λI)⁻¹F'y, gives the same predictions as the dual one."""
    draw = torch.Generator().manual_seed(0)
    made, real, targets = (torch.randn(*s, generator=draw).double() for s in ((7, 4), (5, 4), (7, 3)))
    damping = 0.1 * (made @ made.T).diagonal().mean()
    weights = torch.linalg.solve(made.T @ made + damping * torch.eye(4), made.T @ targets)
    assert torch.allclose(ridge_prediction(made, targets, real, 0.1), real @ weights, atol=1e-10)


def test_without_ridge_made_images_get_their_own_labels():
    draw = torch.Generator().manual_seed(1)
    made, targets = torch.randn(5, 20, generator=draw), torch.randn(5, 3, generator=draw)
    assert torch.allclose(ridge_prediction(made, targets, made, 1e-12).float(), targets, atol=1e-4)


def test_loss_is_zero_when_the_real_images_are_the_made_ones():
    problem = small_problem(12)  # every image of every class
    method = make_method({**SMALL, "augment": False, "learn_labels": False, "ridge": 1e-9, "real_batch": 36})
    state = method.setup(problem, Key(0))
    state.images = torch.cat([problem.of_class(c) for c in range(problem.classes)])
    assert float(method.loss(state, problem, range(3), Key(0))) < 1e-6


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("learn_labels", [False, True])
def test_frepo_equals_the_obvious_loop(augment, learn_labels):
    """Oracle: loss, image gradient and label gradient in float64, one kernel entry at a time."""
    problem = _as_double(small_problem(3, size=28, images=30))
    method = make_method({**SMALL, "augment": augment, "learn_labels": learn_labels})
    key = Key(4)
    state = method.setup(problem, key)
    state.step = 1
    state.memory = {k: v.double() if v.is_floating_point() else v for k, v in state.memory.items()}
    state.images = state.images.double().requires_grad_(True)
    learned = [state.images]
    if learn_labels:
        state.label_scores = state.label_scores.double().requires_grad_(True)
        learned.append(state.label_scores)
    with _double():
        ours = method.loss(state, problem, range(problem.classes), key)
    our_gradients = torch.autograd.grad(ours, learned)

    here = key.child("step", 1)
    slot = int(here.child("slot").numpy().integers(2))
    network = ConvNet(*problem.shape, problem.classes, 6)
    parameters = {n[len(f"network{slot}.") :]: t for n, t in state.memory.items() if n.startswith(f"network{slot}.")}
    change = (lambda x: siamese(here.child("augment").generator(), problem.flips)(x)) if augment else (lambda x: x)
    rows = [problem.draw(c, 4, here.child("real", c)) for c in range(problem.classes)]
    with _double():
        real = change(torch.cat([problem.of_class(c, r) for c, r in enumerate(rows)]))
        truth = functional.one_hot(torch.repeat_interleave(torch.arange(3), 4), 3).double() - 1 / 3
        labels = state.label_scores.softmax(1) if learn_labels else functional.one_hot(state.labels, 3).double()
        theirs = reference_frepo.loss(
            lambda x: network.embed(parameters, x), change(state.images), labels - 1 / 3, real, truth, 1e-3
        )
    their_gradients = torch.autograd.grad(theirs, learned)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for own, other in zip(our_gradients, their_gradients, strict=True):
        assert (own - other).norm() <= 1e-6 * other.norm()


def test_loss_falls_and_labels_are_learned():
    problem = small_problem(2)
    method = make_method({**SMALL, "iterations": 60, "filters": 16, "real_batch": 36, "augment": False})
    losses: list[float] = []
    state = loop.start(method, problem, Key(0))
    before = state.label_scores.clone()
    loop.run(method, problem, Key(0), state, lambda _s, told: losses.extend(told))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert not torch.equal(before, state.label_scores)


def test_first_labels_have_the_certainty_asked_for():
    state = make_method({**SMALL, "certainty": 0.8}).setup(small_problem(2), Key(0))
    own = state.label_scores.softmax(1).gather(1, state.labels[:, None])
    assert torch.allclose(own, torch.full_like(own, 0.8))


def test_networks_are_trained_and_made_anew():
    problem = small_problem(2)
    method = make_method({**SMALL, "iterations": 8, "networks": 1, "longest_training": 3})
    state = loop.start(method, problem, Key(0))
    ages, births = [], []
    loop.run(
        method, problem, Key(0), state,
        lambda s, _: (ages.append(int(s.memory["ages"][0])), births.append(int(s.memory["births"][0]))),
    )  # fmt: skip
    assert max(ages) < 3 and 0 in ages and births[-1] >= 2
