"""DD-Ranking's scores: what of a package's worth is neither its labels' nor the augmentation's.

Source::

    @article{li2025ddranking,
      title={{DD-Ranking}: Rethinking the Evaluation of Dataset Distillation},
      author={Li, Zekai and others}, journal={arXiv preprint arXiv:2505.13300}, year={2025}
    }
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from medistill.aliases import Targets
from medistill.config import EvaluateConfig
from medistill.evaluation.arms import Arm
from medistill.evaluation.cache import TrainedRun
from medistill.tasks.task import Task

TrainAll = Callable[[str, list[Arm], EvaluateConfig], Mapping[str, list[TrainedRun]]]
"""Trains arms under a configuration and gives their runs by arm."""


def normalised(weighted: float) -> float:
    """(e^x − e^−1) / (e − e^−1): 0 at −1, 1 at 1."""
    return (math.exp(weighted) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(hard_label_recovery: float, improvement_over_random: float, weight: float = 0.5) -> float:
    """DD-Ranking's label-robust score, from 0 to 1.

    Args:
        hard_label_recovery: accuracy of full training minus that of the distilled images with plain labels.
        improvement_over_random: accuracy of the package as it is minus that of random images with labels of the same
            kind.
        weight: of the improvement.

    Accuracies are fractions, not percent.

    >>> round(label_robust_score(0.40, 0.10), 3)
    0.21
    """
    return normalised(weight * improvement_over_random - (1 - weight) * hard_label_recovery)


def augmentation_robust_score(augmented_gain: float, plain_gain: float, weight: float = 0.5) -> float:
    """DD-Ranking's augmentation-robust score, from 0 to 1: gains over random with and without augmentation.

    >>> augmentation_robust_score(1, 1), augmentation_robust_score(-1, -1)
    (1.0, 0.0)
    """
    return normalised(weight * augmented_gain + (1 - weight) * plain_gain)


def robustness(
    distilled: Arm,
    random: Arm,
    runs: Mapping[str, list[TrainedRun]],
    task: Task,
    targets: Targets,
    config: EvaluateConfig,
    train_all: TrainAll,
) -> dict[str, float]:
    """Train what the scores need beside the comparison's own arms, and compute them.

    Args:
        distilled: the package's arm.
        random: random images with the package's storage and kind of labels.
        runs: of the comparison, by arm; "full" among them.
        task: whose accuracy it is; of several findings the task's primary metric stands for it.
        targets: of the test images.
        config: of the comparison.
        train_all: trains further arms.

    Returns:
        ``hard_label_recovery``, ``improvement_over_random``, ``improvement_without_augmentation``,
        ``label_robust_score``, ``augmentation_robust_score``; accuracies as fractions.
    """

    metric = "accuracy" if "accuracy" in task.metric_names else task.primary

    def accuracy(arm: str, among: Mapping[str, list[TrainedRun]]) -> float:
        return sum(task.scores(run.probabilities, targets)[metric] for run in among[arm]) / len(among[arm])

    syn, rdm = accuracy(distilled.name, runs), accuracy(random.name, runs)
    syn_hard = syn
    if any(data.soft_labels is not None for data in distilled.sets):
        plain = replace(distilled, sets=tuple(data.with_soft_labels(None) for data in distilled.sets))
        syn_hard = accuracy(distilled.name, train_all("training on plain labels", [plain], config))
    bare = config.model_copy(update={"recipe": config.recipe.model_copy(update={"augment": False})})
    unaugmented = train_all("training without augmentation", [distilled, random], bare)
    gain = accuracy(distilled.name, unaugmented) - accuracy(random.name, unaugmented)
    recovery = accuracy("full", runs) - syn_hard
    return {
        "hard_label_recovery": recovery,
        "improvement_over_random": syn - rdm,
        "improvement_without_augmentation": gain,
        "label_robust_score": label_robust_score(recovery, syn - rdm),
        "augmentation_robust_score": augmentation_robust_score(syn - rdm, gain),
    }
