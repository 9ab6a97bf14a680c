"""Soft labels shifted by class."""

import numpy as np
import pytest

from medistill.config import LabelConfig, Recipe
from medistill.data.preprocess import Part
from medistill.evaluation.calibration import asked_images, class_shift, shifted
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import Statistics, predict, train

RECIPE = Recipe(least_steps=60, width=16, steps_per_doubling=0)


def probabilities(logits):
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def answers():
    """Logits of a network that is unsure, and classes drawn from what it says: calibrated as it is."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(30_000, 3))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    labels = (draw.random((len(logits), 1)) > np.exp(logits).cumsum(1)).sum(1).clip(0, 2)
    return logits, labels


def test_shift_makes_classes_equally_probable_on_average(answers):
    logits, labels = answers
    logits = logits + np.array([0.7, 0.0, -1.2])
    keep = (labels != 1) | (np.arange(len(labels)) % 5 == 0)  # one class is rare
    logits, labels = logits[keep], labels[keep]
    moved = probabilities(logits + class_shift(probabilities(logits), labels))
    by_class = np.array([moved[labels == label].mean(0) for label in range(3)])
    assert np.allclose(by_class.mean(0), 1 / 3, atol=2e-3)


def test_shift_undoes_a_shift(answers):
    logits, labels = answers
    added = np.array([0.5, -0.2, -0.3])
    before = class_shift(probabilities(logits), labels)
    after = class_shift(probabilities(logits + added), labels)
    assert np.allclose(after, before - added, atol=2e-3)
    assert abs(before).max() < 0.05


def test_shift_is_finite_where_nothing_is_in_doubt():
    sure = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert np.allclose(class_shift(sure, np.array([0, 0, 1])), 0, atol=1e-6)
    wrong = class_shift(sure, np.array([1, 1, 1]))
    assert np.array_equal(wrong, [0, 0])  # one class alone: nothing to weigh it against


def test_absent_classes_are_left_alone():
    draw = np.random.default_rng(1)
    shift = class_shift(probabilities(draw.normal(size=(50, 4))), np.arange(50) % 2 * 3)
    assert shift[1] == shift[2] == 0 and shift[0] == pytest.approx(-shift[3])


def test_shifted_labels_are_probabilities():
    soft = probabilities(np.random.default_rng(2).normal(size=(5, 3)))
    moved = shifted(soft, np.array([1.0, 0.0, -1.0]))
    assert np.allclose(moved.sum(1), 1, atol=1e-6) and (moved[:, 0] > soft[:, 0]).all()
    assert np.allclose(shifted(soft, np.zeros(3)), soft, atol=1e-6)


def test_images_asked_about_are_even():
    labels = np.repeat([0, 1, 3], [900, 20, 400])
    part = Part(np.zeros((len(labels), 1, 16, 16), np.uint8), labels)
    assert np.bincount(asked_images(part, Key(0)).labels).tolist() == [342, 20, 0, 342]


def test_a_recipient_of_calibrated_labels_prefers_no_class(tmp_path, monkeypatch):
    """Images that look like class 0 pull a network there; calibrated labels pull it back."""
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    draw = np.random.default_rng(0)
    level = {0: 110, 1: 146}

    def images(count, bias):
        labels = np.arange(count) % 2
        values = np.array([level[x] for x in labels]).reshape(-1, 1, 1, 1) + bias
        return Part((values + draw.normal(0, 25, (count, 1, 16, 16))).clip(0, 255).astype(np.uint8), labels)

    real, made = images(120, 0), images(16, 25)
    statistics = Statistics((0.5,), (0.15,), "none")

    def preferred(calibrate):
        config = LabelConfig(teachers=1, calibrate=calibrate, recipe=RECIPE)
        soft = soft_labels(real, [made], statistics, 2, config, 0)[0]
        network = ConvNet(1, 16, 16, 2, RECIPE.width)
        trained = train(network, Part(made.pixels, made.labels, soft), statistics, RECIPE, Key(1))
        return abs(float(predict(network, trained, real.pixels, statistics).mean(0)[0]) - 0.5)

    assert preferred(True) < 0.5 * preferred(False)
