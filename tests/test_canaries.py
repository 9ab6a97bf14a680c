"""Canaries: the bound against theory, and against mechanisms whose ε is known."""

import math

import numpy as np
import pytest

import medistill
from medistill.audits.audit import NotMeasuredError, audits, populations
from medistill.audits.checks.canaries import canary_images, chance_under, lower_bound, right_guesses
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.keys import Key
from medistill.package.package import read_package

PHANTOM = "phantom:classes=2,images=60,size=16"


@pytest.mark.parametrize(("guesses", "right", "epsilon"), [(10, 7, 0.0), (40, 33, 1.0), (100, 60, 0.3)])
def test_without_delta_it_is_the_tail_of_a_binomial_distribution(guesses, right, epsilon):
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(right, guesses + 1))
    assert chance_under(200, guesses, right, epsilon, 0.0) == pytest.approx(tail)


def test_all_guesses_right_give_the_bound_of_theory():
    """q^r = 0.05 has the solution q = 0.05^(1/r)."""
    q = 0.05 ** (1 / 100)
    assert lower_bound(200, 100, 100, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_what_delta_adds_is_what_the_theorem_says():
    """By its definition: 2 m δ times the largest mean of the binomial's masses just below."""
    q = 1 / (1 + math.exp(-0.5))
    mass = [math.comb(20, k) * q**k * (1 - q) ** (20 - k) for k in range(21)]
    worst = max(sum(mass[15 - i : 15]) / i for i in range(1, 16))
    expected = sum(mass[15:]) + 2 * 50 * 1e-3 * worst
    assert chance_under(50, 20, 15, 0.5, 1e-3) == pytest.approx(expected)
    assert lower_bound(50, 20, 15, 1e-3) < lower_bound(50, 20, 15, 0.0)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_the_bound_stays_below_the_truth_of_a_mechanism_with_known_epsilon(epsilon):
    """Randomised response answers rightly with probability e^ε / (1 + e^ε): at 95 % at most one bound in twenty errs."""
    generator = np.random.default_rng(0)
    right = generator.binomial(200, 1 / (1 + math.exp(-epsilon)), 500)
    bound_of = {r: lower_bound(400, 200, int(r), 0.0) for r in np.unique(right)}
    bounds = np.array([bound_of[r] for r in right])
    assert (bounds > epsilon).mean() <= 0.07
    assert np.median(bounds) > epsilon - 0.8, "and is no idle bound"


def test_guesses_are_made_of_the_highest_and_the_lowest_scores():
    took_part = np.array([True] * 20 + [False] * 20)
    assert right_guesses(took_part.astype(float), took_part) == (20, 20)
    assert right_guesses(-took_part.astype(float), took_part) == (0, 20)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    out = tmp_path_factory.mktemp("canaries") / "p"
    settings = {"method": {"name": "dm", "iterations": 3, "networks": 2, "filters": 8}}
    medistill.distill(PHANTOM, out=out, ipc=3, settings=settings)
    return read_package(out), *populations(prepare(load(PHANTOM)))


def test_canaries_are_images_of_the_package(audited):
    package = audited[0]
    pixels, targets = canary_images(package, 20, Key(0))
    assert pixels.shape == (20, 1, 16, 16) and pixels.dtype == np.uint8 and targets.shape == (20, 2)
    assert len(np.unique(pixels.reshape(20, -1), axis=0)) == 20


def test_a_finding_says_what_was_guessed(audited):
    found = audits()["canaries"](iterations=3).run(*audited, Key(0))
    assert found.details["canaries"] == 20 and found.details["guesses"] == 10
    assert found.value == pytest.approx(lower_bound(20, 10, found.details["right"], 0.0), abs=1e-3)
    assert "95% confidence" in found.explanation


def test_labels_that_teachers_gave_are_attacked_by_temperature_and_age(audited, tmp_path):
    labels = {"teachers": 1, "recipe": {"min_steps": 20, "max_steps": 20}}
    settings = {"method": {"name": "dm", "iterations": 3, "networks": 2, "filters": 8}, "labels": labels}
    medistill.distill(PHANTOM, out=tmp_path / "p", ipc=3, settings=settings)
    found = audits()["soft_labels"](training_steps=20).run(read_package(tmp_path / "p"), *audited[1:], Key(0))
    assert len(found.details) == 4 and found.value == pytest.approx(
        max(d["auc"] for d in found.details.values()), abs=1e-4
    )
    with pytest.raises(NotMeasuredError, match="no teacher"):
        audits()["soft_labels"]().run(*audited, Key(0))
