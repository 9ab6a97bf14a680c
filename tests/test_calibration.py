"""Soft labels shifted by class or finding."""

import numpy as np
import pytest

from medistill.config import LabelConfig, Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.evaluation.teachers import calibration_images, soft_labels
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import predict_probabilities, train_network
from medistill.tasks.task import numbered

RECIPE = Recipe(min_steps=60, width=16, steps_per_doubling=0)
CLASSES = numbered("multi-class", 3)
FINDINGS = numbered("multi-label", 2)


def probabilities(logits):
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def sigmoid(logits):
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.fixture
def answers():
    """Logits of a network that is unsure, and classes drawn from what it says: calibrated as it is."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(30_000, 3))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    labels = (draw.random((len(logits), 1)) > np.exp(logits).cumsum(1)).sum(1).clip(0, 2)
    return logits, labels


@pytest.fixture
def found():
    """Logits of findings, of which either holds as often as its network says."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(30_000, 2))
    return logits, (draw.random(logits.shape) < sigmoid(logits)).astype(np.uint8)


def test_shift_makes_classes_equally_probable_on_average(answers):
    logits, labels = answers
    logits = logits + np.array([0.7, 0.0, -1.2])
    keep = (labels != 1) | (np.arange(len(labels)) % 5 == 0)  # one class is rare
    logits, labels = logits[keep], labels[keep]
    moved = probabilities(logits + CLASSES.shift(probabilities(logits), CLASSES.targets(labels)))
    by_class = np.array([moved[labels == label].mean(0) for label in range(3)])
    assert np.allclose(by_class.mean(0), 1 / 3, atol=2e-3)


def test_shift_makes_findings_as_probable_as_not_on_average(found):
    logits, targets = found
    logits = logits + np.array([0.7, -1.2])
    keep = (targets[:, 0] == 1) | (np.arange(len(targets)) % 5 == 0)  # one finding is frequent
    logits, targets = logits[keep], targets[keep]
    moved = sigmoid(logits + FINDINGS.shift(sigmoid(logits), targets))
    for column, truth in zip(moved.T, targets.T, strict=True):
        assert (column[truth == 1].mean() + column[truth == 0].mean()) / 2 == pytest.approx(0.5, abs=2e-3)


def test_shift_undoes_a_shift(answers):
    logits, labels = answers
    added, targets = np.array([0.5, -0.2, -0.3]), CLASSES.targets(labels)
    before = CLASSES.shift(probabilities(logits), targets)
    after = CLASSES.shift(probabilities(logits + added), targets)
    assert np.allclose(after, before - added, atol=2e-3)
    assert abs(before).max() < 0.05


def test_shift_of_findings_undoes_a_shift(found):
    logits, targets = found
    added = np.array([0.5, -0.3])
    before, after = (FINDINGS.shift(sigmoid(x), targets) for x in (logits, logits + added))
    assert np.allclose(after, before - added, atol=2e-3)
    assert abs(before).max() < 0.05


def test_shift_is_finite_where_nothing_is_in_doubt():
    two = numbered("binary", 2)
    sure = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert np.allclose(two.shift(sure, two.targets(np.array([0, 0, 1]))), 0, atol=1e-6)
    wrong = two.shift(sure, two.targets(np.array([1, 1, 1])))
    assert np.array_equal(wrong, [0, 0])  # one class alone: nothing to weigh it against
    assert np.allclose(FINDINGS.shift(sure, np.eye(2, dtype=np.uint8)[[0, 0, 1]]), 0, atol=1e-6)
    always = FINDINGS.shift(sure, np.array([[1, 0], [1, 0], [1, 0]], np.uint8))
    assert np.array_equal(always, [0, 0])  # of every image or of none: nothing to weigh it against


def test_absent_classes_are_left_alone():
    four = numbered("multi-class", 4)
    draw = np.random.default_rng(1)
    shift = four.shift(probabilities(draw.normal(size=(50, 4))), four.targets(np.arange(50) % 2 * 3))
    assert shift[1] == shift[2] == 0 and shift[0] == pytest.approx(-shift[3]) and abs(shift[0]) > 0.01


def test_shifted_labels_are_probabilities():
    soft = probabilities(np.random.default_rng(2).normal(size=(5, 3)))
    moved = CLASSES.shifted(soft, np.array([1.0, 0.0, -1.0]))
    assert np.allclose(moved.sum(1), 1, atol=1e-6) and (moved[:, 0] > soft[:, 0]).all()
    assert np.allclose(CLASSES.shifted(soft, np.zeros(3)), soft, atol=1e-6)
    logits = np.random.default_rng(3).normal(size=(5, 2))
    shift = np.array([1.0, -2.0])
    assert np.allclose(FINDINGS.shifted(sigmoid(logits), shift), sigmoid(logits + shift), atol=1e-6)


def test_images_asked_about_are_even():
    four = numbered("multi-class", 4)
    labels = np.repeat([0, 1, 3], [900, 20, 400])
    data = TensorSplit(np.zeros((len(labels), 1, 16, 16), np.uint8), four.targets(labels))
    assert four.counts(calibration_images(data, four, Key(0)).targets) == [342, 20, 0, 342]


def test_images_asked_about_have_each_finding_and_none():
    targets = np.repeat(np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8), [900, 20, 10, 800], axis=0)
    data = TensorSplit(np.zeros((len(targets), 1, 16, 16), np.uint8), targets)
    asked = calibration_images(data, FINDINGS, Key(0))
    # 342 for each of three strata: the rarer finding has 30 images, ten of which show the other one too.
    assert FINDINGS.counts(asked.targets) == [352, 30, 342] and len(asked) == 714


def test_a_recipient_of_calibrated_labels_prefers_no_class(tmp_path, monkeypatch):
    """Images that look like class 0 pull a network there; calibrated labels pull it back."""
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    task, draw = numbered("binary", 2), np.random.default_rng(0)
    level = {0: 110, 1: 146}

    def images(count, bias):
        labels = np.arange(count) % 2
        values = np.array([level[x] for x in labels]).reshape(-1, 1, 1, 1) + bias
        pixels = (values + draw.normal(0, 25, (count, 1, 16, 16))).clip(0, 255).astype(np.uint8)
        return TensorSplit(pixels, task.targets(labels))

    real, made = images(120, 0), images(16, 25)
    normalisation = Normalisation((0.5,), (0.15,), "none")

    def preferred(calibrate):
        config = LabelConfig(teachers=1, calibrate=calibrate, recipe=RECIPE)
        soft = soft_labels(real, [made], task, normalisation, config, 0)[0]
        network = ConvNet(1, (16, 16), 2, RECIPE.width)
        trained = train_network(network, made.with_soft_labels(soft), task, normalisation, RECIPE, Key(1))
        answers = predict_probabilities(network, trained, real.pixels, task, normalisation)
        return abs(float(answers.mean(0)[0]) - 0.5)

    assert preferred(True) < 0.5 * preferred(False)
