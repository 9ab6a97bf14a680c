"""Representativeness: what theory says of each score, and that it needs no test image."""

from dataclasses import replace

import numpy as np
import pytest

import medistill
from conftest import TINY
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.evaluation.arms import subset
from medistill.evaluation.robustness import augmentation_robust_score, label_robust_score
from medistill.keys import Key
from medistill.prediction.representativeness import (
    MOST,
    linear,
    mean_auroc,
    recall,
    representativeness,
    ridge,
    wanted,
)
from medistill.prediction.spaces import PLACES, SPACES, fit
from medistill.tasks.task import numbered
from reference.dd_ranking import score
from reference.representativeness import distances, patches

SOURCE = "phantom:classes=3,images=36,size=16"


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_phantom(Phantom(classes=3, images=240, size=20)))


@pytest.fixture(scope="module")
def findings():
    return prepare(make_phantom(Phantom(classes=3, images=120, size=20, task="findings")))


@pytest.mark.parametrize("data", ["prepared", "findings"])
def test_the_real_images_represent_themselves(data, request):
    data = request.getfixturevalue(data)
    scores = representativeness(data.train, data.train, data.task)
    for space in SPACES:
        for distance in ("mmd", "energy", "frechet"):
            assert scores[f"{space}.{distance}"] == pytest.approx(0, abs=1e-9)
        assert scores[f"{space}.nearest"] == 1 and scores[f"{space}.coverage"] == 1


def test_more_images_represent_better_and_wrong_labels_worse(prepared):
    task = prepared.task
    few, many = (subset(prepared.train, task, [n] * 3, Key(1)) for n in (1, 30))
    wrong = replace(many, targets=np.roll(many.targets, 1, axis=1))
    low, high, bad = (representativeness(data, prepared.train, task) for data in (few, many, wrong))
    for name in ("energy", "frechet", "coverage", "nearest"):
        for space in SPACES:
            assert low[f"{space}.{name}"] < high[f"{space}.{name}"], name
    assert bad["pixels.ridge"] < 1 / 3 < high["pixels.ridge"] and bad["pixels.nearest"] < high["pixels.nearest"]


@pytest.mark.parametrize("data", ["prepared", "findings"])
def test_distances_are_those_of_the_formulas(data, request):
    """Of each stratum that both have; a finding's images are those that show it, whatever else they show."""
    data = request.getfixturevalue(data)
    task = data.task
    real = subset(data.train, task, [9] * len(task.strata), Key(5))
    few = subset(real, task, [4, 2, 1, 1][: len(task.strata)], Key(6))
    scores = representativeness(few, real, task)
    made, there = task.membership(few.targets).T, task.membership(real.targets).T
    for name in SPACES:
        space = fit(name, real.pixels)
        synthetic, seen = space(few.pixels), space(real.pixels)
        each = [distances(synthetic[own], seen[others]) for own, others in zip(made, there, strict=True)]
        for distance in each[0]:
            assert scores[f"{name}.{distance}"] == pytest.approx(np.mean([e[distance] for e in each])), distance


def test_soft_labels_count(prepared):
    few = subset(prepared.train, prepared.task, [5] * 3, Key(2))
    even = few.with_soft_labels(np.full((len(few), 3), 1 / 3, dtype=np.float32))
    assert wanted(even) == pytest.approx(np.full((15, 3), 1 / 3)) and np.array_equal(wanted(few), few.targets)
    scores = representativeness(even, prepared.train, prepared.task)
    assert scores["pixels.ridge"] == pytest.approx(1 / 3)


def test_filters_answer_nothing_to_a_constant_image(prepared):
    space = fit("filters", prepared.train.pixels)
    dark, bright = (np.full((1, 1, 20, 20), value, dtype=np.uint8) for value in (20, 200))
    changed = np.abs(space.raw(dark) - space.raw(bright)) > 1e-4
    assert changed.sum() == PLACES**2, "the brightness of each place, and no filter's answer"
    striped = bright.copy()
    striped[..., ::4] = 20
    assert (np.abs(space.raw(striped) - space.raw(bright)) > 1e-2).mean() > 0.2
    assert np.isfinite(space(dark)).all()
    assert np.isfinite(fit("pixels", dark)(dark)).all(), "a space of equal images is not a number"


def test_a_class_that_is_absent_is_left_out(prepared):
    few, task = subset(prepared.train, prepared.task, [4, 4, 0], Key(3)), prepared.task
    scores = representativeness(few, prepared.train, task)
    assert all(np.isfinite(v) for v in scores.values())
    space = fit("pixels", prepared.train.pixels)
    made, seen = (space(data.pixels) for data in (few, prepared.train))
    labels, real = task.labels(few.targets), task.labels(prepared.train.targets)
    each = [distances(made[labels == c], seen[real == c]) for c in (0, 1)]
    assert scores["pixels.energy"] == pytest.approx(np.mean([e["energy"] for e in each]))


def test_dd_ranking_scores_have_their_check_values():
    assert label_robust_score(0.40, 0.10) == pytest.approx(0.210, abs=5e-4)
    assert label_robust_score(-1, 1) == pytest.approx(1) and label_robust_score(1, -1) == pytest.approx(0)
    assert label_robust_score(0.3, 0.1, weight=0.8) == pytest.approx(score(0.8 * 0.1 - 0.2 * 0.3))
    assert augmentation_robust_score(0.2, 0.4) == pytest.approx(score(0.3))
    assert augmentation_robust_score(0.2, 0.4, weight=0.75) == pytest.approx(score(0.75 * 0.2 + 0.25 * 0.4))


def test_robust_scores_of_an_evaluation(package):
    config = TINY.model_copy(update={"robust_scores": True})
    result = medistill.evaluate(package, on=SOURCE, config=config)
    bare = TINY.model_copy(update={"recipe": TINY.recipe.model_copy(update={"augment": False})})
    unaugmented = medistill.evaluate(package, on=SOURCE, config=bare)
    scores, plain = result["robustness"], unaugmented["arms"]
    mean = {arm: result["arms"][arm]["accuracy"]["mean"] for arm in result["arms"]}
    recovered, gained = mean["full"] - mean["distilled"], mean["distilled"] - mean["random"]
    without = plain["distilled"]["accuracy"]["mean"] - plain["random"]["accuracy"]["mean"]
    assert scores["hard_label_recovery"] == pytest.approx(recovered)
    assert scores["improvement_over_random"] == pytest.approx(gained)
    assert scores["improvement_without_augmentation"] == pytest.approx(without)
    assert scores["label_robust_score"] == pytest.approx(score(0.5 * gained - 0.5 * recovered))
    assert scores["augmentation_robust_score"] == pytest.approx(score(0.5 * gained + 0.5 * without))
    assert unaugmented["robustness"] is None, "they are not measured unless somebody asks for them"


@pytest.mark.parametrize("colour", [False, True])
def test_patches_equal_the_obvious_loop(colour):
    # Images of the size that patches are cut from, so that nothing is resized.
    pixels = prepare(make_phantom(Phantom(classes=3, images=50, size=28, colour=colour))).train.pixels
    expected = patches(pixels[:2] / 255, pixels / 255)
    assert fit("patches", pixels).raw(pixels[:2]) == pytest.approx(expected, abs=1e-4)


def test_ridge_tells_apart_what_planes_tell_apart():
    rng, task = np.random.default_rng(0), numbered("binary", 2)

    def labelled(labels):
        labels = np.asarray(labels)
        return TensorSplit(np.zeros((len(labels), 1, 16, 16), np.uint8), task.targets(labels))

    real = labelled(np.arange(40) % 2)
    features = rng.normal(0, 0.1, (40, 5)) + np.where(np.arange(40) % 2, 1.0, -1.0)[:, None]
    said = ridge(linear(features), features, np.eye(2)[np.arange(40) % 2], features)
    assert recall(said, real, task) == 1 and mean_auroc(said, real, task) == 1
    assert mean_auroc(np.zeros((4, 2)), labelled([0, 1, 0, 1]), task) == 0.5
    assert mean_auroc(np.ones((3, 2)), labelled([0, 0, 0]), task) == 0.5
    surer = 100 * said + [3, 0]
    assert mean_auroc(surer, real, task) == 1, "neither how sure it is nor of what it is surer counts"


@pytest.mark.parametrize("data", ["prepared", "findings"])
def test_spaces_together_are_the_sum_of_what_each_says(data, request, monkeypatch):
    data = request.getfixturevalue(data)
    task = data.task
    few = subset(data.train, task, [3] * len(task.strata), Key(4))
    scores = representativeness(few, data.train, task)
    monkeypatch.setattr("medistill.prediction.representativeness.SPACES", ("patches",))
    alone = representativeness(few, data.train, task)
    assert alone["patches.ridge_auroc"] == scores["patches.ridge_auroc"]
    assert set(alone) == {name for name in scores if name.startswith(("patches.", "together."))}
    assert alone["together.ridge_auroc"] == alone["patches.ridge_auroc"] != 0.5
    said = []
    monkeypatch.setattr("medistill.prediction.representativeness.SPACES", SPACES)
    monkeypatch.setattr(
        "medistill.prediction.representativeness.ridge", lambda *a: said.append(ridge(*a)) or said[-1]
    )
    again = representativeness(few, data.train, task)
    beyond = [s - s.mean(axis=1, keepdims=True) if task.exclusive else s for s in said]
    units = [each / each.std() for each in beyond]
    sample = subset(data.train, task, [MOST] * len(task.strata), Key(0).child("representativeness"))
    assert len(units) == 3 and again["together.ridge_auroc"] == mean_auroc(sum(units), sample, task)
    with_even = np.full((len(few), 3), 1 / 3, dtype=np.float32)
    even = representativeness(few.with_soft_labels(with_even), data.train, task)
    assert even["together.ridge_auroc"] == 0.5
