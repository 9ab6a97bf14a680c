"""Metrics of every kind of task, what guessing achieves, and intervals."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain, recovery
from medistill.evaluation.protocol import defined_points
from medistill.keys import Key
from medistill.package.results import Estimate
from medistill.tasks.task import numbered
from reference.sklearn_metrics import of_classes, of_findings, of_grades

KINDS = {"binary": of_classes, "multi-class": of_classes, "ordinal": of_grades, "multi-label": of_findings}


def _predictions(n=300, classes=4, seed=0, skill=1.0, ties=False, kind="multi-class"):
    """A task, probabilities, labels as scikit-learn takes them, and targets."""
    rng = np.random.default_rng(seed)
    task = numbered(kind, classes)
    if kind == "multi-label":
        labels = (rng.random((n, classes)) < 0.3).astype(np.uint8)
        probabilities = 1 / (1 + np.exp(-rng.standard_normal((n, classes)) - skill * (2 * labels - 1.0)))
        return task, np.round(probabilities, 1) if ties else probabilities, labels, task.targets(labels)
    labels = rng.integers(0, classes, n)
    logits = rng.standard_normal((n, classes)) + skill * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        probabilities = np.round(probabilities, 1) + 1e-3
        probabilities /= probabilities.sum(1, keepdims=True)
        probabilities = np.round(probabilities, 2)
    return task, probabilities, labels, task.targets(labels)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("kind", "classes"), [("binary", 2), ("multi-class", 2), ("multi-class", 5), ("ordinal", 5), ("multi-label", 4)]
)
def test_metrics_equal_sklearn(kind, classes, ties):
    task, p, y, targets = _predictions(classes=classes, ties=ties, kind=kind)
    assert task.scores(p, targets) == pytest.approx(KINDS[kind](p, y), abs=1e-12)


@pytest.mark.parametrize("kind", ["multi-class", "ordinal", "multi-label"])
def test_weighted_metrics_equal_sklearn(kind):
    task, p, y, targets = _predictions(ties=True, kind=kind)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(y))).astype(float)
    ours = task.evaluate(p, targets, weights)
    for row, w in enumerate(weights):
        assert {m: ours[m][row] for m in task.metric_names} == pytest.approx(KINDS[kind](p, y, w), abs=1e-12)


def test_absent_class_is_left_out():
    task, p, y, _ = _predictions(classes=3)
    targets = task.targets(np.where(y == 2, 0, y))
    found = task.scores(p, targets)
    assert np.isfinite(list(found.values())).all()
    details = task.details([p], targets)
    assert details["recall"][2] is None and details["by_class"]["auroc"][2] is None
    kept = of_classes(p[:, :2], np.where(y == 2, 0, y))
    assert found["auroc"] == pytest.approx(kept["auroc"])


def test_finding_that_no_image_or_every_image_has_is_left_out_of_what_it_does_not_define():
    task, p, y, _ = _predictions(kind="multi-label")
    targets = y.copy()
    targets[:, 0], targets[:, 1] = 0, 1
    found, some = task.scores(p, targets), of_findings(p[:, 2:], y[:, 2:])
    assert found["auroc"] == pytest.approx(some["auroc"])
    assert found["balanced_accuracy"] == pytest.approx(some["balanced_accuracy"])
    by_class = task.details([p], targets)["by_class"]
    assert by_class["average_precision"][0] is None and by_class["average_precision"][1] == 1
    assert by_class["specificity"][1] is None and task.details([p], targets)["recall"][0] is None


def test_details():
    task, p, y, targets = _predictions()
    found = task.details([p, p], targets)
    assert np.array_equal(found["confusion"], 2 * confusion_matrix(y, p.argmax(1)))
    assert found["recall"] == pytest.approx(recall_score(y, p.argmax(1), average=None))
    assert found["by_class"]["auroc"] == pytest.approx([roc_auc_score(y == c, p[:, c]) for c in range(4)])
    three, two = numbered("multi-class", 3), numbered("multi-class", 2)
    assert three.details([np.eye(3)], np.eye(3, dtype=np.uint8))["calibration_error"] == 0
    assert two.details([np.eye(2)[[0, 0]]], np.eye(2, dtype=np.uint8))["calibration_error"] == pytest.approx(0.5)


def test_details_of_findings():
    task, p, y, targets = _predictions(kind="multi-label")
    found = task.details([p], targets)
    assert found["confusion"] is None
    assert found["recall"] == pytest.approx(recall_score(y, p >= 0.5, average=None))
    assert found["by_class"]["specificity"] == pytest.approx(recall_score(1 - y, p < 0.5, average=None))
    certain = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    sure = numbered("multi-label", 3).details([certain], np.array([[1, 0, 0], [0, 1, 0]]))
    assert sure["calibration_error"] == pytest.approx(0.25), "three of four answers, to findings that there are"


def _baseline(kind, train, test, outputs):
    task = numbered(kind, outputs)
    return task.majority_baseline(task.targets(np.array(train)), task.targets(np.array(test)))


def test_majority_baseline():
    found = _baseline("multi-class", [0, 1, 1], [0, 0, 0, 1], 2)
    assert found["accuracy"] == 0.25 and found["balanced_accuracy"] == 0.5 and found["auroc"] == 0.5
    found = _baseline("multi-class", [0, 0, 0, 1, 1, 2], [1, 2, 2], 3)
    assert found["balanced_accuracy"] == 0.5, "the most frequent class is not among those tested"
    found = _baseline("ordinal", [0, 2, 2], [0, 1, 2, 2], 3)
    assert found["mean_absolute_error"] == 0.75 and found["quadratic_kappa"] == 0
    found = _baseline("multi-label", [[1, 0], [1, 0], [0, 1]], [[1, 0], [0, 0], [0, 1], [1, 0]], 2)
    assert found["auroc"] == found["balanced_accuracy"] == 0.5
    assert found["average_precision"] == pytest.approx((0.5 + 0.25) / 2), "how often a finding holds"
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0) / 2), "the finding that most images have is said to hold"


@pytest.mark.parametrize("kind", ["multi-class", "ordinal", "multi-label"])
def test_many_samples_are_measured_in_blocks(monkeypatch, kind):
    task, p, _, targets = _predictions(40, 3, kind=kind)
    weights = bootstrap_weights(40, 30, Key(0))
    assert weights.dtype.itemsize == 2 and (weights.sum(axis=1) == 40).all()
    whole, block, sizes = task.evaluate(p, targets, weights), type(task).evaluate_block, []
    monkeypatch.setattr("medistill.tasks.task.BLOCK", 100)
    monkeypatch.setattr(
        type(task), "evaluate_block", lambda self, p, t, w: sizes.append(len(w)) or block(self, p, t, w)
    )
    for name, values in task.evaluate(p, targets, weights).items():
        assert np.array_equal(values, whole[name]), name
    assert sizes == [2] * 15


def test_bootstrap_draws_whole_patients():
    patients = np.array(["a", "a", "b", "c"])
    weights = bootstrap_weights(4, 50, Key(0), patients)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert bootstrap_weights(4, 50, Key(0)).sum(axis=1).tolist() == [4] * 50


def test_interval_covers_the_truth_as_often_as_it_says():
    covered, task = 0, numbered("binary", 2)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.tile([0, 1], 100)
        right = rng.random(200) < 0.8
        p = np.eye(2)[np.where(right, y, 1 - y)]
        arm = Bootstrap.of(task, [p], task.targets(y), bootstrap_weights(200, 300, Key(seed)), Key(seed))
        low, high = arm.summary("accuracy").ci95
        covered += low <= 0.8 <= high
    assert 52 <= covered <= 60


def test_intervals_of_errors_may_exceed_one():
    task, _, y, targets = _predictions(classes=5, kind="ordinal")
    farthest = np.eye(5)[np.where(y < 3, 4, 0)]
    arm = Bootstrap.of(task, [farthest], targets, bootstrap_weights(len(y), 200, Key(0)), Key(0))
    low, high = arm.summary("mean_absolute_error").ci95
    assert 1 < low < arm.mean("mean_absolute_error") < high
    low, high = arm.summary("quadratic_kappa").ci95
    assert -1 <= low < arm.mean("quadratic_kappa") < high < 0


def test_gain_is_paired():
    task, p, _, targets = _predictions(skill=1.0)
    better = 0.9 * p + 0.1 * targets
    weights = bootstrap_weights(len(p), 500, Key(0))
    first, second, again = (Bootstrap.of(task, [q], targets, weights, Key(i)) for i, q in enumerate((better, p, p)))
    paired = gain(first, second, "accuracy")
    assert paired.ci95[0] > 0
    same = gain(second, again, "accuracy")
    assert same.mean == 0 and same.ci95 == [0, 0]
    unpaired = Bootstrap.of(task, [p], targets, bootstrap_weights(len(p), 500, Key(9)), Key(2))
    wide = gain(first, unpaired, "accuracy").ci95
    assert wide[1] - wide[0] > paired.ci95[1] - paired.ci95[0]


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_recovery_is_the_share_of_what_lies_above_the_baseline(baseline):
    task, p, y, targets = _predictions(classes=2, skill=2)
    _, q, _, _ = _predictions(classes=2, skill=2, seed=1)
    q = np.where(np.arange(len(y))[:, None] % 3 == 0, q, p)  # a third of the answers know nothing of the image
    weights = bootstrap_weights(len(y), 200, Key(0))
    arm, full = (Bootstrap.of(task, [each], targets, weights, Key(0)) for each in (q, p))
    found = recovery(arm, full, "accuracy", baseline)

    def share(w):
        distilled, whole = ((w * (each.argmax(1) == y)).sum() / w.sum() for each in (q, p))
        return (distilled - baseline) / (whole - baseline)

    assert found.mean == pytest.approx(share(np.ones(len(y)))) and found.mean < 0.95
    assert found.ci95 == pytest.approx(np.percentile([share(w) for w in weights.astype(float)], [2.5, 97.5]).tolist())


def test_recovery_of_next_to_nothing_is_not_told():
    task, p, y, targets = _predictions(classes=2, skill=2)
    weights = bootstrap_weights(len(y), 200, Key(0))
    full = Bootstrap.of(task, [p], targets, weights, Key(0))
    low = full.summary("accuracy").ci95[0]
    assert recovery(full, full, "accuracy", low + 1e-6).mean is None, "the interval reaches below the baseline"
    assert recovery(full, full, "accuracy", low - 1e-6).mean is not None
    grades, guesses, _, graded = _predictions(kind="ordinal", skill=0.05)
    hardly = Bootstrap.of(grades, [guesses], graded, bootstrap_weights(len(guesses), 200, Key(0)), Key(0))
    assert hardly.summary("quadratic_kappa").ci95[0] < 0 < hardly.mean("quadratic_kappa")
    assert recovery(hardly, hardly, "quadratic_kappa", 0.0).mean is None, "chance is a kappa of exactly zero"
    weak = Bootstrap.of(task, [np.eye(2)[np.zeros(len(y), int)]], targets, weights, Key(0))
    assert recovery(weak, full, "balanced_accuracy", 0.5).mean == pytest.approx(0)


def test_points_of_a_curve_that_are_not_defined_are_left_out():
    curve = np.array([[1, 32, np.nan], [2, 64, 0.5]])
    assert defined_points(TrainedRun(np.ones((1, 1)), curve)) == [[2, 64, 0.5]]


def test_no_share_of_an_error_is_recovered():
    task, p, _, targets = _predictions(kind="ordinal")
    weights = bootstrap_weights(len(p), 100, Key(0))
    worse = np.where(np.arange(len(p))[:, None] % 2, p, p[:, ::-1])
    arm, full = (Bootstrap.of(task, [each], targets, weights, Key(0)) for each in (worse, p))
    assert recovery(arm, full, "mean_absolute_error") == Estimate(mean=None)
    assert 0 < recovery(arm, full, "quadratic_kappa").mean < 1
