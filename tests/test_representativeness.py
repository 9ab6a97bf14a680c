"""Representativeness: what theory says of each score, and that it needs no test image."""

import numpy as np
import pytest
import torch

from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import Part, prepare
from medistill.evaluation.arms import subset
from medistill.evaluation.robustness import augmentation_robust_score, label_robust_score
from medistill.keys import Key
from medistill.prediction.representativeness import (
    MOST,
    _distances,
    auroc,
    linear,
    recall,
    representativeness,
    ridge,
    targets,
)
from medistill.prediction.spaces import SPACES, _bank, _learned_patches, _patches, _shrunk, fit


@pytest.fixture(scope="module")
def prepared():
    return prepare(make_phantom(Phantom(classes=3, images=240, size=20)))


def test_the_real_images_represent_themselves(prepared):
    scores = representativeness(prepared.train, prepared.train, 3)
    for space in SPACES:
        for distance in ("mmd", "energy", "frechet"):
            assert scores[f"{space}.{distance}"] == pytest.approx(0, abs=1e-9)
        assert scores[f"{space}.nearest"] == 1 and scores[f"{space}.coverage"] == 1


def test_more_images_represent_better_and_wrong_labels_worse(prepared):
    few, many = (subset(prepared.train, [n] * 3, Key(1)) for n in (1, 30))
    wrong = Part(many.pixels, (many.labels + 1) % 3)
    low, high, bad = (representativeness(part, prepared.train, 3) for part in (few, many, wrong))
    for name in ("energy", "frechet", "coverage", "nearest"):
        for space in SPACES:
            assert low[f"{space}.{name}"] < high[f"{space}.{name}"], name
    assert bad["pixels.ridge"] < 1 / 3 < high["pixels.ridge"] and bad["pixels.nearest"] < high["pixels.nearest"]


def test_distances_are_those_of_the_formulas():
    made, seen = np.array([[0.0], [2.0]]), np.array([[0.0], [1.0], [5.0]])
    found = _distances(made, seen)
    pairs = lambda a, b: np.mean([abs(x - y) for x in a.ravel() for y in b.ravel()])  # noqa: E731
    assert found["energy"] == pytest.approx(-(2 * pairs(made, seen) - pairs(made, made) - pairs(seen, seen)))
    assert found["frechet"] == pytest.approx(-((1 - 2) ** 2 + (1 - np.std([0, 1, 5])) ** 2))
    k = lambda a, b: np.mean([np.exp(-(((x - y) / 4) ** 2) / 2) for x in a.ravel() for y in b.ravel()])  # noqa: E731
    assert found["mmd"] == pytest.approx(-(k(made, made) + k(seen, seen) - 2 * k(made, seen)))


def test_soft_labels_count(prepared):
    part = subset(prepared.train, [5] * 3, Key(2))
    even = Part(part.pixels, part.labels, np.full((len(part), 3), 1 / 3, dtype=np.float32))
    assert targets(even, 3).tolist() == pytest.approx(np.full((15, 3), 1 / 3))
    assert representativeness(even, prepared.train, 3)["pixels.ridge"] == pytest.approx(1 / 3)


def test_filters_answer_nothing_to_a_constant_image(prepared):
    assert np.abs(_bank().sum(dim=(1, 2, 3)).numpy()).max() < 1e-5
    flat = np.full((2, 1, 20, 20), 77, dtype=np.uint8)
    assert np.isfinite(fit("filters", prepared.train.pixels)(flat)).all()
    assert np.isfinite(fit("pixels", flat)(flat)).all(), "a space of equal images is not a number"


def test_a_class_that_is_absent_is_left_out(prepared):
    part = subset(prepared.train, [4, 4, 0], Key(3))
    assert all(np.isfinite(v) for v in representativeness(part, prepared.train, 3).values())


def test_dd_ranking_scores_have_their_check_value():
    assert label_robust_score(0.40, 0.10) == pytest.approx(0.210, abs=5e-4)
    assert label_robust_score(-1, 1) == pytest.approx(1) and label_robust_score(1, -1) == pytest.approx(0)
    assert augmentation_robust_score(0.2, 0.4, weight=1) == augmentation_robust_score(0.2, 0.0, weight=1)


def test_robust_scores_of_an_evaluation(package):
    import medistill
    from conftest import TINY

    config = TINY.model_copy(update={"robust_scores": True})
    result = medistill.evaluate(package, on="phantom:classes=3,images=36,size=16", config=config)
    scores, arms = result["robustness"], result["arms"]
    mean = {arm: arms[arm]["accuracy"]["mean"] for arm in arms}
    assert scores["hard_label_recovery"] == pytest.approx(mean["full"] - mean["distilled"])
    assert scores["improvement_over_random"] == pytest.approx(mean["distilled"] - mean["random"])
    expected = label_robust_score(scores["hard_label_recovery"], scores["improvement_over_random"])
    assert scores["label_robust_score"] == pytest.approx(expected)
    assert medistill.evaluate(package, on="phantom:classes=3,images=36,size=16", config=TINY)["robustness"] is None


def test_patches_equal_the_obvious_loop(prepared):
    """At each place the patch without brightness and contrast, its answers above the threshold, pooled by quarters."""
    pixels = prepared.train.pixels[:3]
    mean, filters = (t.numpy() for t in _learned_patches(prepared.train.pixels[:50]))
    images = _shrunk(pixels, 28).double().numpy()
    expected = np.zeros((3, 2 * len(filters), 2, 2))
    for image, answers in zip(images, expected, strict=True):
        for y in range(24):
            for x in range(24):
                patch = image[:, y : y + 5, x : x + 5].reshape(-1)
                patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-3)
                said = filters @ (patch - mean)
                both = np.concatenate([np.maximum(said - 0.25, 0), np.maximum(-said - 0.25, 0)])
                answers[:, y // 12, x // 12] += both / 144
    found = _patches(pixels, (torch.from_numpy(mean), torch.from_numpy(filters)))
    assert found == pytest.approx(expected.reshape(3, -1), abs=1e-4)


def test_ridge_tells_apart_what_planes_tell_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = rng.normal(0, 0.1, (40, 5)) + np.where(labels, 1.0, -1.0)[:, None]
    said = ridge(linear(features), features, np.eye(2)[labels], features)
    assert recall(said, labels) == 1 and auroc(said, labels) == 1
    assert (
        auroc(np.zeros((4, 2)), np.array([0, 1, 0, 1])) == 0.5 == auroc(np.ones((3, 2)), np.zeros(3, dtype=np.int64))
    )
    surer = 100 * said + [3, 0]
    assert auroc(surer, labels) == 1, "neither how sure it is nor of what it is surer counts"


def test_spaces_together_are_the_sum_of_what_each_says(prepared, monkeypatch):
    few = subset(prepared.train, [3] * 3, Key(4))
    scores = representativeness(few, prepared.train, 3)
    monkeypatch.setattr("medistill.prediction.representativeness.SPACES", ("patches",))
    alone = representativeness(few, prepared.train, 3)
    assert alone["patches.ridge_auroc"] == scores["patches.ridge_auroc"]
    assert set(alone) == {name for name in scores if name.startswith(("patches.", "together."))}
    assert alone["together.ridge_auroc"] == alone["patches.ridge_auroc"] != 0.5
    said = []
    monkeypatch.setattr("medistill.prediction.representativeness.SPACES", SPACES)
    monkeypatch.setattr(
        "medistill.prediction.representativeness.ridge", lambda *a: said.append(ridge(*a)) or said[-1]
    )
    again = representativeness(few, prepared.train, 3)
    units = [(s - s.mean(axis=1, keepdims=True)) / (s - s.mean(axis=1, keepdims=True)).std() for s in said]
    labels = subset(prepared.train, [MOST] * 3, Key(0).child("representativeness")).labels
    assert len(units) == 3 and again["together.ridge_auroc"] == auroc(sum(units), labels)
    with_even = np.full((9, 3), 1 / 3, dtype=np.float32)
    even = representativeness(Part(few.pixels, few.labels, with_even), prepared.train, 3)
    assert even["together.ridge_auroc"] == 0.5
