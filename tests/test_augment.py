from itertools import combinations

import pytest
import torch

from medistill.augment import OPERATION, for_training, siamese
from medistill.keys import Key


@pytest.mark.parametrize("name", sorted(OPERATION))
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 3, 20, 31), (2, 1, 16, 18, 20)])
def test_same_change_for_every_image_and_differentiable(name, shape):
    change = OPERATION[name]([0.3, 0.8, 0.1, 0.6], "both")
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    together = change(x)
    assert together.shape == x.shape
    assert torch.allclose(together, torch.cat([change(row[None]) for row in x]))
    (gradient,) = torch.autograd.grad(together.sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["scale", "rotate", "crop"])
@pytest.mark.parametrize("shape", [(2, 1, 17, 17), (2, 1, 16, 17, 18)])
def test_middle_of_the_range_changes_nothing(name, shape):
    middle = {"scale": (1 - 1 / 1.2) / (1.2 - 1 / 1.2)}.get(name, 0.5)
    x = torch.rand(shape)
    assert torch.allclose(OPERATION[name]([middle] * 4, "none")(x), x, atol=1e-5)


def test_colour_middle_is_identity_for_gray():
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(OPERATION["colour"]([0.5, 0.5, 0.5, 0.5], "none")(x), x, atol=1e-6)


@pytest.mark.parametrize(("shape", "cut"), [((1, 1, 16, 16), 64), ((1, 1, 16, 16, 16), 512)])
def test_cutout_takes_half_of_each_side_in_the_middle(shape, cut):
    x = torch.ones(shape)
    assert (OPERATION["cutout"]([0.5] * 4, "none")(x) == 0).sum() == cut


def test_draws_repeat():
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(siamese(Key(3).generator(), "both")(x), siamese(Key(3).generator(), "both")(x))


@pytest.mark.parametrize(
    ("flips", "left", "top"), [("none", False, False), ("horizontal", True, False), ("both", True, True)]
)
def test_training_mirrors_only_what_is_allowed(flips, left, top):
    x = torch.zeros(400, 1, 16, 16)
    x[:, :, :, :4] += 1.0
    x[:, :, :4, :] += 0.5
    y = for_training(x, Key(0).generator(), flips)
    mirrored_x = (y[:, 0, 8, :].argmax(1) > 8).any() and (
        y[..., 10:].mean((1, 2, 3)) > y[..., :6].mean((1, 2, 3))
    ).float().mean() > 0.3
    mirrored_y = (y[:, :, 10:].mean((1, 2, 3)) > y[:, :, :6].mean((1, 2, 3))).float().mean() > 0.3
    assert bool(mirrored_x) == left
    assert bool(mirrored_y) == top


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 16)])
def test_training_changes_each_image_by_itself(shape):
    x = torch.rand(1, 1, *shape).expand(8, 1, *shape)
    y = for_training(x, Key(0).generator(), "none")
    assert len(torch.unique(y.flatten(1), dim=0)) == 8


@pytest.mark.parametrize("flips", ["horizontal", "both"])
@pytest.mark.parametrize("shape", [(17, 17), (17, 17, 17)])
def test_training_mirrors_the_image_that_it_would_have_made(flips, shape):
    # A mirror before the turn would shear; the mirrored image must be the other one's mirror image.
    x = torch.rand(24 if len(shape) == 2 else 48, 1, *shape)
    plain = for_training(x, Key(5).generator(), "none")
    mirrored = for_training(x, Key(5).generator(), flips)
    axes = range(1, 1 + len(shape))
    every = [way for count in range(len(shape) + 1) for way in combinations(axes, count)]
    seen = set()
    for one, other in zip(plain, mirrored, strict=True):
        same = [way for way in every if torch.allclose(one.flip(way), other, atol=1e-4)]
        assert same, "neither the image nor a mirror image of it"
        seen.add(same[0])
    assert seen == ({(), (len(shape),)} if flips == "horizontal" else set(every))
