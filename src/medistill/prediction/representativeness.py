"""How representative a distilled set is of the real images, in seconds and without training.

Every score compares the distilled images with real training images, class by class, in spaces
that no method optimises in (:mod:`medistill.prediction.spaces`). Test images are never seen.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012; Székely, Rizzo, "Energy statistics",
2013; Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017; Naeem et al.,
"Reliable fidelity and diversity metrics for generative models", ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from medistill.data.preprocess import TensorSplit
from medistill.evaluation.arms import subset
from medistill.keys import Key
from medistill.prediction.spaces import SPACES, Features, fit
from medistill.tasks.task import Task

MOST = 400
"""Real images of each class that are looked at."""

NEIGHBOURS = 5

TIE = 1e-5
"""Share by which distances count as equal: features of the same image differ in rounding by what else is asked."""

PENALTY = 0.1
"""Of ridge regression; kernels are about one for an image with itself."""

TOGETHER = "together"
"""The name of the sum of what regressions in all spaces say."""


def representativeness(distilled: TensorSplit, real: TensorSplit, task: Task, seed: int = 0) -> dict[str, float]:
    """Scores by name, each a mean over strata that both have; higher is more representative.

    ``<space>.<score>``: ``mmd``, ``energy`` and ``frechet`` are distances with the sign turned, zero where the
    distributions are the same; ``density`` and ``coverage`` are those of Naeem et al. (coverage within 0 to 1);
    ``nearest`` is the mean recall of the answer that each real image's nearest distilled image stands for, ``ridge``
    that of a ridge regression of the distilled labels on the features, and ``ridge_auroc`` the mean area under
    the ROC curves of what it says of each output, all 0 to 1. ``together.ridge_auroc`` is that of the sum of what the
    regressions in all spaces say, each in units of its own spread.

    Args:
        distilled: ``uint8`` images (n, c, h, w) at the size that networks see, with targets.
        real: the training images, prepared alike.
        task: what targets mean.
        seed: of the sample of real images.
    """
    sample = subset(real, task, [MOST] * len(task.strata), Key(seed).child("representativeness"))
    scores, together = {}, np.zeros((len(sample), task.outputs))
    made, there = task.membership(distilled.targets).T, task.membership(sample.targets).T
    for name in SPACES:
        space = fit(name, sample.pixels)
        synthetic, seen = space(distilled.pixels), space(sample.pixels)
        distances = [
            _distances(synthetic[members], seen[real_members])
            for members, real_members in zip(made, there, strict=True)
            if members.any() and real_members.any()
        ]
        for score in distances[0]:
            scores[f"{name}.{score}"] = float(np.mean([e[score] for e in distances]))
        answers = distilled.targets[cdist(seen, synthetic).argmin(axis=1)].astype(np.float64)
        scores[f"{name}.nearest"] = recall(answers, sample, task)
        kernel = linear(seen) if space.linear else gaussian(seen, synthetic)
        predicted = ridge(kernel, synthetic, wanted(distilled), seen)
        scores[f"{name}.ridge"] = recall(predicted, sample, task)
        scores[f"{name}.ridge_auroc"] = mean_auroc(predicted, sample, task)
        beyond = predicted - predicted.mean(axis=1, keepdims=True) if task.exclusive else predicted
        together += beyond / (beyond.std() or 1.0)
    return scores | {f"{TOGETHER}.ridge_auroc": mean_auroc(together, sample, task)}


def wanted(data: TensorSplit) -> Features:
    """The labels to learn, (n, outputs): the soft ones where there are any."""
    return (data.targets if data.soft_labels is None else data.soft_labels).astype(np.float64)


def _distances(made: Features, seen: Features) -> dict[str, float]:
    """Scores of one class, (n, d) distilled and (m, d) real features."""
    between, among, within = cdist(made, seen), cdist(made, made), cdist(seen, seen)
    width = np.median(within[within > 0]) if (within > 0).any() else 1.0

    def kernel(distance: Features) -> Features:
        return np.exp(-np.square(distance / width) / 2)

    mmd = kernel(between).mean() * 2 - kernel(among).mean() - kernel(within).mean()
    energy = 2 * between.mean() - among.mean() - within.mean()
    # Few images have no covariance matrix, so each component is compared by itself.
    spread = made.std(axis=0) if len(made) > 1 else np.zeros(made.shape[1])
    frechet = np.square(made.mean(0) - seen.mean(0)).sum() + np.square(spread - seen.std(axis=0)).sum()
    near = min(NEIGHBOURS, len(seen) - 1)
    radius = np.sort(within, axis=1)[:, near]
    # An image that is among the real ones is as far from one's last neighbour as that is, whatever rounding says.
    inside = between < radius[None, :] * (1 - TIE)
    return {
        "mmd": float(mmd),
        "energy": -float(energy),
        "frechet": -float(frechet),
        "density": float(inside.sum(axis=1).mean() / max(1, near)),
        "coverage": float(inside.any(axis=0).mean()),
    }


Kernel = Callable[[Features, Features], Features]


def gaussian(seen: Features, made: Features) -> Kernel:
    """A Gaussian kernel, as wide as the median distance between the two."""
    width = np.median(cdist(seen[:: max(1, len(seen) // 200)], made)) or 1.0
    return lambda a, b: np.exp(-np.square(cdist(a, b) / width) / 2)


def linear(seen: Features) -> Kernel:
    """The inner product, one on average for an image with itself."""
    scale = float(np.square(seen).sum(axis=1).mean()) or 1.0
    return lambda a, b: np.asarray(a @ b.T / scale)


def ridge(kernel: Kernel, synthetic: Features, labels: Features, seen: Features) -> Features:
    """What kernel ridge regression of labels (n, classes) on features says of others, (m, classes).

    No step is taken: one linear system is solved.
    """
    weights = np.linalg.solve(
        kernel(synthetic, synthetic) + PENALTY * np.eye(len(synthetic)), labels - labels.mean(axis=0)
    )
    return np.asarray(kernel(seen, synthetic) @ weights + labels.mean(axis=0))


def recall(predicted: Features, real: TensorSplit, task: Task) -> float:
    """Mean recall, over the outputs that occur, of what regression says."""
    defined = [value for value in task.details([predicted], real.targets)["recall"] if value is not None]
    return float(np.mean(defined))


def mean_auroc(predicted: Features, real: TensorSplit, task: Task) -> float:
    """Mean area under the ROC curves of the outputs that occur; a half where that is not defined.

    Unlike recall it changes with every image that is ranked better, and not with how sure regression is of all images
    or of a class, which soft labels and few images change and training makes up for.
    """
    return float(np.nan_to_num(task.scores(predicted, real.targets)["auroc"], nan=0.5))
