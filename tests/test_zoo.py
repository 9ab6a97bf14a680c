"""Networks beside the ConvNet."""

from typing import get_args

import numpy as np
import pytest
import torch

import medistill
from medistill.config import EvaluateConfig, Net, Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.keys import Key
from medistill.nets.training import predict_probabilities, train_network
from medistill.nets.zoo import BUILDERS, make_network
from medistill.tasks.task import make_task

NAMES = get_args(Net)
CHEAP = ("mlp", "convnet-bn")
TASK = make_task("binary", ("above", "below"))
GIVEN = Normalisation((0.5,), (0.25,), "none")


def test_the_settings_know_every_network():
    assert set(NAMES) == {"convnet", *BUILDERS}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (28, 28)), (3, (16, 21)), (1, (64, 64)), (1, (16, 16, 16)), (3, (28, 20, 17))]
)
def test_any_size_and_number_of_channels(name, channels, shape):
    network = make_network(name, channels, shape, 4, 8)
    seen = network.logits(network.parameters(Key(0)), torch.zeros(2, channels, *shape))
    assert seen.shape == (2, 4) and torch.isfinite(seen).all()


def test_a_convnet_for_volumes_is_half_as_wide():
    assert [make_network("convnet", 1, shape, 4, 8).filters for shape in ((16, 16), (16, 16, 16))] == [8, 4]


@pytest.mark.parametrize("name", NAMES)
def test_equal_keys_give_equal_networks_and_leave_the_global_state_alone(name):
    network = make_network(name, 1, (16, 16), 3, 8)
    before = torch.get_rng_state()
    first, second, other = (network.parameters(Key(0).child("x", i)) for i in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", CHEAP)
def test_training_learns_and_repeats(name):
    data = _halves()
    network = make_network(name, 1, (16, 16), 2, 8)
    recipe = Recipe(min_steps=30, width=8)
    first, second = (train_network(network, data, TASK, GIVEN, recipe, Key(0)) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert _right(predict_probabilities(network, first, data.pixels, TASK, GIVEN), data) > 0.9


@pytest.mark.parametrize("name", ("convnet", *CHEAP))
def test_training_in_bfloat16_is_near_that_in_float32(name):
    data = _halves()
    network = make_network(name, 1, (16, 16), 2, 8)
    recipes = [Recipe(min_steps=30, width=8, precision=p) for p in ("float32", "bfloat16")]
    whole, half = (train_network(network, data, TASK, GIVEN, recipe, Key(0)) for recipe in recipes)
    assert all(half[k].dtype == whole[k].dtype for k in whole)
    assert any(not torch.equal(half[k], whole[k]) for k in whole)
    said = [predict_probabilities(network, parameters, data.pixels, TASK, GIVEN) for parameters in (whole, half)]
    assert np.abs(said[0] - said[1]).max() < 0.15 and _right(said[1], data) > 0.9


def test_a_recipe_in_float32_is_known_as_before_there_was_a_choice():
    assert "precision" not in Recipe().model_dump(mode="json")
    half = Recipe(precision="bfloat16")
    assert half.model_dump(mode="json")["precision"] == "bfloat16"
    assert Recipe.model_validate(half.model_dump(mode="json")) == half
    assert Recipe.model_validate(Recipe(width=8).model_dump(mode="json")).precision == "float32"


def test_batch_norm_uses_its_running_means_when_it_predicts():
    """An image's prediction must not depend on the others beside it."""
    data = _halves()
    network = make_network("convnet-bn", 1, (16, 16), 2, 8)
    trained = train_network(network, data, TASK, GIVEN, Recipe(min_steps=10, width=8), Key(0))
    together = predict_probabilities(network, trained, data.pixels, TASK, GIVEN)
    alone = np.concatenate([predict_probabilities(network, trained, p[None], TASK, GIVEN) for p in data.pixels])
    assert np.abs(together - alone).max() < 1e-5
    assert not torch.equal(
        trained["3.running_mean"], network.parameters(Key(0).child("parameters"))["3.running_mean"]
    )


def test_evaluate_on_further_networks(tmp_path):
    source = "phantom:classes=3,images=36,size=16"
    medistill.distill(source, out=tmp_path / "p", method="random", ipc=2)
    config = EvaluateConfig(
        recipe=Recipe(min_steps=5, width=8),
        repeats=1,
        random_draws=2,
        architectures=("convnet", "mlp"),
        bootstrap=100,
    )
    result = medistill.evaluate(tmp_path / "p", on=source, config=config)
    assert result["architecture"] == "convnet" and list(result["transfer"]) == ["mlp"]
    other = result["transfer"]["mlp"]
    assert set(result["arms"]) - set(other["arms"]) == {"full_balanced"}
    assert other["arms"]["full"] != result["arms"]["full"]
    assert set(other) == {
        "arms", "recovery", "recovery_ci95", "recovery_above_baseline", "recovery_above_baseline_ci95",
        "gain_over_random", "gain_over_random_matched",
    }  # fmt: skip


def _right(probabilities: np.ndarray, data: TensorSplit) -> float:
    """Share of images that are given their class."""
    return TASK.scores(probabilities, data.targets)["accuracy"]


def _halves() -> TensorSplit:
    """Bright above or bright below, with noise."""
    draw = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = draw.integers(0, 100, (24, 1, 16, 16))
    pixels[labels == 0, :, :8] += 120
    pixels[labels == 1, :, 8:] += 120
    return TensorSplit(pixels.astype(np.uint8), TASK.targets(labels))
