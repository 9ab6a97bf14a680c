"""Tasks: their metrics against definitions, their contract, and how they are told apart."""

import numpy as np
import pytest
import torch

from medistill.errors import ConfigError, DataError
from medistill.tasks.measures import Ranking
from medistill.tasks.multilabel import NONE
from medistill.tasks.task import inferred_task, make_task, retasked, tasks
from medistill.testing import TaskConformance
from reference import measures as reference

NAMES = ("a", "b", "c")


def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", sorted(tasks()))


class TestMultiClass(TaskConformance):
    kind = "multi-class"


class TestBinary(TaskConformance):
    kind, class_names = "binary", ("no", "yes")


class TestOrdinal(TaskConformance):
    kind, class_names = "ordinal", ("none", "mild", "moderate", "severe")


class TestMultiLabel(TaskConformance):
    kind = "multi-label"


def test_conformance_is_asked_of_every_task(kind):
    assert kind in {case.kind for case in TaskConformance.__subclasses__()}


def drawn(outputs=4, images=80, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(images, outputs))
    return rng, np.round(scores, 1) if ties else scores


def test_area_under_the_curve_is_that_of_pairs():
    rng, scores = drawn(1)
    positive = rng.random(80) < 0.3
    found = Ranking(scores[:, 0], positive, np.ones((80, 1))).auroc()[0]
    assert found == pytest.approx(reference.auroc(scores[:, 0], positive))


def test_kappa_is_that_of_its_definition():
    rng, scores = drawn(ties=False)
    task, labels = make_task("ordinal", ("a", "b", "c", "d")), rng.integers(0, 4, 80)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    kappa = task.scores(p, task.targets(labels))["quadratic_kappa"]
    assert kappa == pytest.approx(reference.quadratic_kappa(labels, p.argmax(1), 4))


def test_smoothed_grades_spread_to_near_ones_and_others_are_classes():
    task, classes = (make_task(kind, ("a", "b", "c", "d")) for kind in ("ordinal", "multi-class"))
    logits, targets = torch.randn(5, 4), torch.from_numpy(task.targets(np.array([0, 1, 2, 3, 3])))
    rows = [[np.exp(-2.0 * (grade - other) ** 2) for other in range(4)] for grade in (0, 1, 2, 3, 3)]
    labels = torch.tensor(rows) / torch.tensor(rows).sum(1, keepdim=True)
    expected = -(labels * logits.log_softmax(1)).sum(1).mean()
    assert task.loss(logits, targets, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    soft = torch.rand(5, 4).softmax(1)
    for given in (targets, soft):
        assert torch.equal(task.loss(logits, given), classes.loss(logits, given))
    assert torch.equal(task.loss(logits, soft, 0.1), classes.loss(logits, soft, 0.1))


def test_balanced_accuracy_of_findings_is_that_of_its_definition():
    rng, scores = drawn(ties=False)
    task = make_task("multi-label", ("a", "b", "c", "d"))
    targets = (rng.random((80, 4)) < 0.3).astype(np.uint8)
    p = 1 / (1 + np.exp(-scores))
    expected = [reference.balanced_accuracy_of_finding(t, a) for t, a in zip(targets.T, (p >= 0.5).T, strict=True)]
    assert task.scores(p, targets)["balanced_accuracy"] == pytest.approx(np.mean(expected))
    assert task.details([p], targets)["by_class"]["balanced_accuracy"] == pytest.approx(expected)


def test_a_finding_that_nobody_has_is_left_out_of_means():
    rng, scores = drawn(3)
    task = make_task("multi-label", NAMES)
    targets = (rng.random((80, 3)) < 0.3).astype(np.uint8)
    targets[:, 1] = 0
    p = 1 / (1 + np.exp(-scores))
    two = make_task("multi-label", ("a", "c"))
    assert task.scores(p, targets)["auroc"] == two.scores(p[:, [0, 2]], targets[:, [0, 2]])["auroc"]
    assert task.details([p], targets)["by_class"]["auroc"][1] is None


def test_one_grade_on_both_sides_leaves_kappa_undefined():
    task = make_task("ordinal", NAMES)
    p = np.tile([1.0, 0.0, 0.0], (5, 1))
    assert np.isnan(task.scores(p, task.targets(np.zeros(5, dtype=int)))["quadratic_kappa"])


def test_losses_are_torchs():
    rng, scores = drawn(3)
    logits = torch.from_numpy(scores).float()
    labels = torch.from_numpy(rng.integers(0, 3, 80))
    task = make_task("multi-class", NAMES)
    targets = torch.from_numpy(task.targets(labels.numpy()))
    wanted = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(task.loss(logits, targets, 0.1), wanted)
    several = torch.from_numpy((rng.random((80, 3)) < 0.4).astype(np.uint8))
    found = make_task("multi-label", NAMES).loss(logits, several)
    assert torch.equal(found, torch.nn.functional.binary_cross_entropy_with_logits(logits, several.float()))


def test_strata_of_findings_overlap_and_none_has_its_own():
    task = make_task("multi-label", NAMES)
    targets = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=np.uint8)
    assert task.strata == (*NAMES, NONE)
    assert task.membership(targets).tolist() == [
        [True, True, False, False], [False, False, False, True], [False, False, True, False],
    ]  # fmt: skip
    assert task.counts(targets) == [1, 1, 1, 1]


def test_what_labels_are_by_themselves_and_grades_are_never_guessed():
    assert inferred_task(np.zeros(3), ("no", "yes")).kind == "binary"
    assert inferred_task(np.zeros(3), NAMES).kind == "multi-class"
    assert inferred_task(np.zeros((3, 3)), NAMES).kind == "multi-label"
    numbered = [f"grade {i}" for i in range(4)]
    assert inferred_task(np.zeros(3), numbered).kind == "multi-class"


def test_one_hot_findings_can_be_called_classes_and_others_cannot():
    found = make_task("multi-label", NAMES)
    assert retasked(found, {"train": np.eye(3, dtype=np.uint8)}, "ordinal").kind == "ordinal"
    with pytest.raises(DataError, match=r"train_labels: \[0\] has 2 of 3 ones"):
        retasked(found, {"train": np.array([[1, 1, 0]], dtype=np.uint8)}, "multi-class")


def test_unknown_kinds_and_wrong_numbers_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'ordinal'"):
        make_task("ordnal", NAMES)
    with pytest.raises(ConfigError, match="3 classes"):
        make_task("binary", NAMES)
    with pytest.raises(DataError, match=r"\[1\] is 7 \(1 images\)"):
        make_task("multi-class", NAMES).targets(np.array([0, 7]))


@pytest.mark.parametrize("of", ["multi-class", "multi-label"])
def test_the_lowest_temperature_leaves_probabilities(of):
    certain = make_task(of, NAMES).sharpened(np.array([[0.2, 0.3, 0.5], [0.1, 0.2, 0.2]]), 0.001)
    assert np.isfinite(certain).all() and (certain >= 0).all() and (certain <= 1).all()
