"""What every task must do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from medistill.aliases import Probabilities, Targets
from medistill.tasks.task import Task, make_task, tasks


class TaskConformance:
    """Tests that follow from the contract of a task alone."""

    kind: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]] = ("first", "second", "third")

    def make(self) -> Task:
        """The task under test."""
        return make_task(self.kind, self.class_names)

    def sample(self, task: Task, images: int = 60) -> tuple[Targets, Probabilities]:
        """Targets of every stratum, and probabilities that have nothing to do with them."""
        rng = np.random.default_rng(0)
        stood = task.representatives()[rng.permutation(np.arange(images) % len(task.strata))]
        return stood, task.probabilities(torch.from_numpy(rng.normal(size=(images, task.outputs)))).numpy()

    def test_registered_under_its_kind(self) -> None:
        assert type(self.make()) is tasks()[self.kind] and self.make().kind == self.kind

    def test_representatives_belong_to_their_strata(self) -> None:
        task = self.make()
        assert task.membership(task.representatives()).diagonal().all()
        assert len(task.representatives()) == len(task.strata) == len(set(task.strata))

    def test_labels_and_targets_go_both_ways(self) -> None:
        task = self.make()
        targets, _ = self.sample(task)
        assert targets.dtype == np.uint8
        assert np.array_equal(task.targets(task.labels(targets)), targets)
        task.require(targets, "here")

    def test_every_image_belongs_to_a_stratum(self) -> None:
        task = self.make()
        targets, _ = self.sample(task)
        assert task.membership(targets).any(axis=1).all()
        assert task.counts(targets) == task.membership(targets).sum(axis=0).tolist()

    def test_right_answers_reach_the_best_of_every_metric(self) -> None:
        task = self.make()
        targets, _ = self.sample(task)
        for name, value in task.scores(targets.astype(np.float64), targets).items():
            metric = task.metric(name)
            assert np.isclose(value, metric.bounds[1] if metric.higher_is_better else metric.bounds[0]), name

    def test_a_weight_counts_as_so_many_copies(self) -> None:
        task = self.make()
        targets, probabilities = self.sample(task)
        weights = np.random.default_rng(1).integers(0, 3, (4, len(targets)))
        evaluated = task.evaluate(probabilities, targets, weights)
        for row, weight in enumerate(weights):
            rows = np.repeat(np.arange(len(targets)), weight)
            for name, value in task.scores(probabilities[rows], targets[rows]).items():
                assert np.isclose(evaluated[name][row], value, equal_nan=True), name

    def test_the_primary_metric_is_one_of_the_metrics(self) -> None:
        task = self.make()
        assert task.metric(task.primary).higher_is_better
        assert set(task.majority_baseline(*[self.sample(task)[0]] * 2)) == set(task.metric_names)

    def test_the_loss_falls_where_right_answers_get_surer(self) -> None:
        task = self.make()
        targets = torch.from_numpy(self.sample(task)[0])
        logits = [task.logits(certainty, targets.float()) for certainty in (0.6, 0.8, 0.95)]
        hard = [float(task.loss(output, targets)) for output in logits]
        assert hard[0] > hard[1] > hard[2] > 0
        # Floats are probabilities, and the same as hard labels where they are zeros and ones.
        assert np.isclose(float(task.loss(logits[0], targets.float())), hard[0], atol=1e-6)

    def test_soft_labels_keep_their_meaning(self) -> None:
        task = self.make()
        _, probabilities = self.sample(task)
        stored = probabilities.astype(np.float16)
        assert np.allclose(task.restored(stored), probabilities, atol=2e-3)
        assert np.allclose(task.sharpened(probabilities, 1.0), probabilities)
        soft = probabilities.astype(np.float32)
        assert np.allclose(task.shifted(soft, np.zeros(task.outputs)), soft, atol=1e-6)
        try:
            task.restored((stored + np.float16(2)).astype(np.float16))
        except ValueError:
            return
        raise AssertionError("soft labels above one were accepted")

    def test_the_shift_mends_a_preference(self) -> None:
        task = self.make()
        targets, probabilities = self.sample(task, 600)
        bias = np.linspace(-2, 2, task.outputs)
        biased = task.shifted(probabilities.astype(np.float32), bias).astype(np.float64)
        mended = task.shifted(biased.astype(np.float32), task.shift(biased, targets))
        plain = task.shifted(probabilities.astype(np.float32), task.shift(probabilities, targets))
        assert np.allclose(mended, plain, atol=0.02)

    def test_details_are_of_every_output(self) -> None:
        task = self.make()
        targets, probabilities = self.sample(task)
        details = task.details([probabilities, probabilities], targets)
        assert len(details["recall"]) == task.outputs and 0 <= details["calibration_error"] <= 1
        assert all(len(values) == task.outputs for values in details["by_class"].values())
