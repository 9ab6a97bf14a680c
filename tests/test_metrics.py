import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain, recovery
from medistill.evaluation.metrics import METRICS, chance, details, metrics, weighted_metrics
from medistill.keys import Key


def _predictions(n=300, classes=4, seed=0, skill=1.0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.standard_normal((n, classes)) + skill * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        probabilities = np.round(probabilities, 1) + 1e-3
        probabilities /= probabilities.sum(1, keepdims=True)
        probabilities = np.round(probabilities, 2)
    return probabilities, labels


def _sklearn(p, y, weights=None):
    predicted = p.argmax(1)
    area = [roc_auc_score(y == c, p[:, c], sample_weight=weights) for c in range(p.shape[1])]
    return {
        "accuracy": accuracy_score(y, predicted, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(y, predicted, sample_weight=weights),
        "auroc": np.mean(area),
        "f1_macro": f1_score(y, predicted, average="macro", sample_weight=weights),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_equal_sklearn(classes, ties):
    p, y = _predictions(classes=classes, ties=ties)
    assert metrics(p, y) == pytest.approx(_sklearn(p, y), abs=1e-12)


def test_weighted_metrics_equal_sklearn():
    p, y = _predictions(ties=True)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(y))).astype(float)
    ours = weighted_metrics(p, y, weights)
    for row, w in enumerate(weights):
        assert {m: ours[m][row] for m in METRICS} == pytest.approx(_sklearn(p, y, w), abs=1e-12)


def test_absent_class_is_left_out():
    p, y = _predictions(classes=3)
    y = np.where(y == 2, 0, y)
    found = metrics(p, y)
    assert np.isfinite(list(found.values())).all()
    assert details([p], y)["recall"][2] is None


def test_details():
    p, y = _predictions()
    found = details([p], y)
    assert np.array_equal(found["confusion"], confusion_matrix(y, p.argmax(1)))
    assert details([np.eye(3)[[0, 1, 2]]], np.array([0, 1, 2]))["calibration_error"] == 0
    assert details([np.eye(2)[[0, 0]]], np.array([0, 1]))["calibration_error"] == pytest.approx(0.5)


def test_chance():
    found = chance(np.array([0, 1, 1]), np.array([0, 0, 0, 1]), 2)
    assert found["accuracy"] == 0.25 and found["balanced_accuracy"] == 0.5 and found["auroc"] == 0.5
    found = chance(np.array([0, 0, 0, 1, 1, 2]), np.array([1, 2, 2]), 3)
    assert found["balanced_accuracy"] == 0.5, "the most frequent class is not among those tested"


def test_many_samples_are_measured_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    weights = bootstrap_weights(40, 30, Key(0))
    assert weights.dtype.itemsize == 2 and (weights.sum(axis=1) == 40).all()
    whole = weighted_metrics(p, y, weights)
    monkeypatch.setattr("medistill.evaluation.metrics.BLOCK", 100)
    for name, values in weighted_metrics(p, y, weights).items():
        assert np.array_equal(values, whole[name]), name


def test_bootstrap_draws_whole_patients():
    patients = np.array(["a", "a", "b", "c"])
    weights = bootstrap_weights(4, 50, Key(0), patients)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert bootstrap_weights(4, 50, Key(0)).sum(axis=1).tolist() == [4] * 50


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.tile([0, 1], 100)
        right = rng.random(200) < 0.8
        p = np.eye(2)[np.where(right, y, 1 - y)]
        arm = Bootstrap.of([p], y, bootstrap_weights(200, 300, Key(seed)), Key(seed))
        low, high = arm.summary("accuracy")["ci95"]
        covered += low <= 0.8 <= high
    assert 52 <= covered <= 60


def test_gain_is_paired():
    p, y = _predictions(skill=1.0)
    better = 0.9 * p + 0.1 * np.eye(4)[y]
    weights = bootstrap_weights(len(y), 500, Key(0))
    first, second = (Bootstrap.of([q], y, weights, Key(1)) for q in (better, p))
    paired = gain(first, second, "accuracy")
    assert paired["ci95"][0] > 0
    same = gain(second, second, "accuracy")
    assert same["mean"] == 0 and same["ci95"] == [0, 0]
    unpaired = Bootstrap.of([p], y, bootstrap_weights(len(y), 500, Key(9)), Key(2))
    wide = gain(first, unpaired, "accuracy")["ci95"]
    assert wide[1] - wide[0] > paired["ci95"][1] - paired["ci95"][0]


def test_recovery():
    p, y = _predictions(classes=2, skill=2)
    weights = bootstrap_weights(len(y), 200, Key(0))
    arm = Bootstrap.of([p], y, weights, Key(0))
    assert recovery(arm, arm, "accuracy")["mean"] == 1
    assert recovery(arm, arm, "accuracy", chance=1.0)["mean"] is None
    weak = Bootstrap.of([np.eye(2)[np.zeros(len(y), int)]], y, weights, Key(0))
    assert recovery(weak, arm, "balanced_accuracy", 0.5)["mean"] == pytest.approx(0)
