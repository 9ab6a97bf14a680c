"""FRePo against its formula."""

import pytest
import torch

from medistill.augment import siamese
from medistill.distil import loop
from medistill.distil.matching import ridge_prediction
from medistill.distil.method import make_method
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import small_problem
from problems import drawn, every_real_image, float64, step
from reference import kernel_ridge

SMALL = {"name": "frepo", "iterations": 9, "networks": 2, "filters": 6, "real_batch": 12, "ridge": 1e-3}


def test_ridge_equals_a_direct_solve():
    """The primal solution, (F'F + λI)⁻¹F'y, gives the same predictions as the dual one."""
    draw = torch.Generator().manual_seed(0)
    synthetic, real, targets = (torch.randn(*s, generator=draw).double() for s in ((7, 4), (5, 4), (7, 3)))
    damping = 0.1 * (synthetic @ synthetic.T).diagonal().mean()
    weights = torch.linalg.solve(synthetic.T @ synthetic + damping * torch.eye(4), synthetic.T @ targets)
    assert torch.allclose(ridge_prediction(synthetic, targets, real, 0.1), real @ weights, atol=1e-10)


def test_without_ridge_synthetic_images_get_their_own_labels():
    draw = torch.Generator().manual_seed(1)
    synthetic, targets = torch.randn(5, 20, generator=draw), torch.randn(5, 3, generator=draw)
    assert torch.allclose(ridge_prediction(synthetic, targets, synthetic, 1e-12).float(), targets, atol=1e-4)


def test_loss_is_zero_when_the_real_images_are_the_synthetic_ones():
    problem = small_problem(12)  # every image of every class
    method = make_method({**SMALL, "augment": False, "learn_labels": False, "ridge": 1e-9, "real_batch": 36})
    state = method.setup(problem, Key(0))
    state.images = every_real_image(problem)
    assert float(step(method, state, problem, Key(0)).loss) < 1e-6


PROBABILITIES = {"classes": lambda logits: logits.softmax(1), "findings": torch.sigmoid}


@pytest.mark.parametrize("task", sorted(PROBABILITIES))
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("learn_labels", [False, True])
@float64()
def test_frepo_equals_the_obvious_loop(augment, learn_labels, task):
    """Oracle: loss, image gradient and label gradient in float64, one kernel entry at a time."""
    problem, key = small_problem(3, size=28, images=30, task=task), Key(4)
    method = make_method({**SMALL, "augment": augment, "learn_labels": learn_labels})
    state = method.setup(problem, key)
    state.step = 1
    ours = step(method, state, problem, key)

    here, outputs = key.child("step", 1), problem.outputs
    centre = {"classes": 1 / 3, "findings": 1 / 4}[task]  # images without a finding are a stratum, too
    slot = int(here.child("slot").numpy().integers(2))
    network = ConvNet(problem.channels, problem.shape, outputs, 6)
    parameters = network.parameters(key.child("network", slot, 0))
    flips = problem.normalisation.flips
    change = (lambda x: siamese(here.child("augment").generator(), flips)(x)) if augment else (lambda x: x)
    each = {"classes": 4, "findings": 3}[task]  # three classes; three findings, and none
    pairs = [drawn(problem, s, each, here.child("real", s)) for s in range(problem.strata)]
    real, truth = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    images = state.images.detach().clone().requires_grad_(True)
    learned = [images]
    labels = problem.targets.double()
    if learn_labels:
        logits = state.label_logits.detach().clone().requires_grad_(True)
        learned.append(logits)
        labels = PROBABILITIES[task](logits)
    theirs = kernel_ridge.loss(
        lambda x: network.embed(parameters, x),
        change(images), labels - centre, change(real), truth - centre, 1e-3,
    )  # fmt: skip
    their_gradients = torch.autograd.grad(theirs, learned)
    assert ours.images.dtype == torch.float64 and (ours.labels is None) == (not learn_labels)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    for own, other in zip((ours.images, ours.labels), their_gradients, strict=False):
        assert (own - other).norm() <= 1e-6 * other.norm()


def test_loss_falls_and_labels_are_learned():
    problem = small_problem(2)
    method = make_method({**SMALL, "iterations": 60, "filters": 16, "real_batch": 36, "augment": False})
    losses: list[float] = []
    state = loop.start(method, problem, Key(0))
    before = state.label_logits.clone()
    loop.run(method, problem, Key(0), state, lambda _s, told: losses.extend(told))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert not torch.equal(before, state.label_logits)


def test_first_labels_have_the_certainty_asked_for():
    state = make_method({**SMALL, "certainty": 0.8}).setup(small_problem(2), Key(0))
    own = state.label_logits.softmax(1).gather(1, state.targets.argmax(1, keepdim=True))
    assert torch.allclose(own, torch.full_like(own, 0.8))


def test_networks_are_trained_and_made_anew():
    problem = small_problem(2)
    method = make_method({**SMALL, "iterations": 8, "networks": 1, "longest_training": 3})
    state = loop.start(method, problem, Key(0))
    ages, births = [], []
    loop.run(
        method, problem, Key(0), state,
        lambda s, _: (ages.append(int(s.buffers["ages"][0])), births.append(int(s.buffers["births"][0]))),
    )  # fmt: skip
    assert max(ages) < 3 and 0 in ages and births[-1] >= 2
