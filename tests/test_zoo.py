"""Networks beside the ConvNet."""

from typing import get_args

import numpy as np
import pytest
import torch

import medistill
from medistill.config import EvaluateConfig, Net, Recipe
from medistill.data.preprocess import Part
from medistill.keys import Key
from medistill.nets.training import Statistics, predict, train
from medistill.nets.zoo import BUILDERS, make_network

NAMES = get_args(Net)
CHEAP = ("mlp", "convnet-bn")


def test_the_settings_know_every_network():
    assert set(NAMES) == {"convnet", *BUILDERS}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 21), (1, 64, 64)])
def test_any_size_and_number_of_channels(name, shape):
    network = make_network(name, *shape, 4, 8)
    seen = network.logits(network.parameters(Key(0)), torch.zeros(2, *shape))
    assert seen.shape == (2, 4) and torch.isfinite(seen).all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_keys_give_equal_networks_and_leave_the_global_state_alone(name):
    network = make_network(name, 1, 16, 16, 3, 8)
    before = torch.get_rng_state()
    first, second, other = (network.parameters(Key(0).child("x", i)) for i in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", CHEAP)
def test_training_learns_and_repeats(name):
    part, statistics = _halves(), Statistics((0.5,), (0.25,), "none")
    network = make_network(name, 1, 16, 16, 2, 8)
    recipe = Recipe(least_steps=30, width=8)
    first, second = (train(network, part, statistics, recipe, Key(0)) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert (predict(network, first, part.pixels, statistics).argmax(1) == part.labels).mean() > 0.9


@pytest.mark.parametrize("name", ("convnet", *CHEAP))
def test_training_in_bfloat16_is_near_that_in_float32(name):
    part, statistics = _halves(), Statistics((0.5,), (0.25,), "none")
    network = make_network(name, 1, 16, 16, 2, 8)
    recipes = [Recipe(least_steps=30, width=8, precision=p) for p in ("float32", "bfloat16")]
    whole, half = (train(network, part, statistics, recipe, Key(0)) for recipe in recipes)
    assert all(half[k].dtype == whole[k].dtype for k in whole)
    assert any(not torch.equal(half[k], whole[k]) for k in whole)
    said = [predict(network, parameters, part.pixels, statistics) for parameters in (whole, half)]
    assert np.abs(said[0] - said[1]).max() < 0.15 and (said[1].argmax(1) == part.labels).mean() > 0.9


def test_a_recipe_in_float32_is_known_as_before_there_was_a_choice():
    assert "precision" not in Recipe().model_dump(mode="json")
    half = Recipe(precision="bfloat16")
    assert half.model_dump(mode="json")["precision"] == "bfloat16"
    assert Recipe.model_validate(half.model_dump(mode="json")) == half and Recipe.model_validate({}) == Recipe()


def test_batch_norm_uses_its_running_means_when_it_predicts():
    """An image's prediction must not depend on the others beside it."""
    part, statistics = _halves(), Statistics((0.5,), (0.25,), "none")
    network = make_network("convnet-bn", 1, 16, 16, 2, 8)
    trained = train(network, part, statistics, Recipe(least_steps=10, width=8), Key(0))
    together = predict(network, trained, part.pixels, statistics)
    alone = np.concatenate([predict(network, trained, p[None], statistics) for p in part.pixels])
    assert np.abs(together - alone).max() < 1e-5
    assert not torch.equal(
        trained["3.running_mean"], network.parameters(Key(0).child("parameters"))["3.running_mean"]
    )


def test_evaluate_on_further_networks(tmp_path):
    source = "phantom:classes=3,images=36,size=16"
    medistill.distill(source, out=tmp_path / "p", method="random", ipc=2)
    config = EvaluateConfig(
        recipe=Recipe(least_steps=5, width=8), networks=1, random_draws=2, nets=("convnet", "mlp"), bootstrap=100
    )
    result = medistill.evaluate(tmp_path / "p", on=source, config=config)
    assert result["net"] == "convnet" and list(result["transfer"]) == ["mlp"]
    other = result["transfer"]["mlp"]
    assert set(result["arms"]) - set(other["arms"]) == {"full_balanced"}
    assert other["arms"]["full"] != result["arms"]["full"]
    assert set(other) == {
        "arms", "recovery", "recovery_ci95", "recovery_above_chance", "recovery_above_chance_ci95",
        "gain_over_random", "gain_over_random_stored_alike",
    }  # fmt: skip


def _halves() -> Part:
    """Bright above or bright below, with noise."""
    draw = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = draw.integers(0, 100, (24, 1, 16, 16))
    pixels[labels == 0, :, :8] += 120
    pixels[labels == 1, :, 8:] += 120
    return Part(pixels.astype(np.uint8), labels)
