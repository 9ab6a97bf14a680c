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
import numpy.typing as npt
from scipy.spatial.distance import cdist

from medistill.data.preprocess import Part
from medistill.evaluation.arms import subset
from medistill.evaluation.metrics import metrics
from medistill.keys import Key
from medistill.prediction.spaces import SPACES, Features, fit

MOST = 400
"""Real images of each class that are looked at."""

NEIGHBOURS = 5

PENALTY = 0.1
"""Of ridge regression; kernels are about one for an image with itself."""

TOGETHER = "together"
"""The name of the sum of what regressions in all spaces say."""


def representativeness(distilled: Part, real: Part, classes: int, seed: int = 0) -> dict[str, float]:
    """Scores by name, each a mean over classes that both have; higher is more representative.

    ``<space>.<score>``: ``mmd``, ``energy`` and ``frechet`` are distances with the sign turned, zero where the
    distributions are the same; ``density`` and ``coverage`` are those of Naeem et al. (coverage within 0 to 1);
    ``nearest`` is the share of real images whose nearest distilled image is of their class, ``ridge`` that
    share for a ridge regression of the distilled labels on the features, and ``ridge_auroc`` the mean area under
    the ROC curves of what it says of each class, all 0 to 1. ``together.ridge_auroc`` is that of the sum of what the
    regressions in all spaces say, each in units of its own spread.

    Args:
        distilled: ``uint8`` images (n, c, h, w) at the size that networks see, with labels.
        real: the training images, prepared alike.
        classes: number of classes.
        seed: of the sample of real images.
    """
    sample = subset(real, [MOST] * classes, Key(seed).child("representativeness"))
    scores, together = {}, np.zeros((len(sample), classes))
    for name in SPACES:
        space = fit(name, sample.pixels)
        made, seen = space(distilled.pixels), space(sample.pixels)
        each = [
            _distances(made[distilled.labels == c], seen[sample.labels == c])
            for c in range(classes)
            if (distilled.labels == c).any() and (sample.labels == c).any()
        ]
        for score in each[0]:
            scores[f"{name}.{score}"] = float(np.mean([e[score] for e in each]))
        scores[f"{name}.nearest"] = _nearest(made, distilled.labels, seen, sample.labels)
        kernel = linear(seen) if space.linear else gaussian(seen, made)
        said = ridge(kernel, made, targets(distilled, classes), seen)
        scores[f"{name}.ridge"] = recall(said, sample.labels)
        scores[f"{name}.ridge_auroc"] = auroc(said, sample.labels)
        beyond = said - said.mean(axis=1, keepdims=True)
        together += beyond / (beyond.std() or 1.0)
    return scores | {f"{TOGETHER}.ridge_auroc": auroc(together, sample.labels)}


def targets(part: Part, classes: int) -> Features:
    """The labels to learn, (n, classes): the soft ones where there are any."""
    return np.eye(classes)[part.labels] if part.soft_labels is None else part.soft_labels.astype(np.float64)


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
    inside = between < radius[None, :]
    return {
        "mmd": float(mmd),
        "energy": -float(energy),
        "frechet": -float(frechet),
        "density": float(inside.sum(axis=1).mean() / max(1, near)),
        "coverage": float(inside.any(axis=0).mean()),
    }


def _nearest(
    made: Features, made_labels: npt.NDArray[np.int64], seen: Features, labels: npt.NDArray[np.int64]
) -> float:
    return _per_class(made_labels[cdist(seen, made).argmin(axis=1)] == labels, labels)


Kernel = Callable[[Features, Features], Features]


def gaussian(seen: Features, made: Features) -> Kernel:
    """A Gaussian kernel, as wide as the median distance between the two."""
    width = np.median(cdist(seen[:: max(1, len(seen) // 200)], made)) or 1.0
    return lambda a, b: np.exp(-np.square(cdist(a, b) / width) / 2)


def linear(seen: Features) -> Kernel:
    """The inner product, one on average for an image with itself."""
    scale = float(np.square(seen).sum(axis=1).mean()) or 1.0
    return lambda a, b: np.asarray(a @ b.T / scale)


def ridge(kernel: Kernel, made: Features, wanted: Features, seen: Features) -> Features:
    """What kernel ridge regression of labels (n, classes) on features says of others, (m, classes).

    No step is taken: one linear system is solved.
    """
    weights = np.linalg.solve(kernel(made, made) + PENALTY * np.eye(len(made)), wanted - wanted.mean(axis=0))
    return np.asarray(kernel(seen, made) @ weights + wanted.mean(axis=0))


def recall(said: Features, labels: npt.NDArray[np.int64]) -> float:
    """Mean recall, over the classes that occur, of what regression says."""
    return _per_class(said.argmax(axis=1) == labels, labels)


def auroc(said: Features, labels: npt.NDArray[np.int64]) -> float:
    """Mean area under the ROC curves of the classes that occur; a half where that is not defined.

    Unlike recall it changes with every image that is ranked better, and not with how sure regression is of all images
    or of a class, which soft labels and few images change and training makes up for.
    """
    return float(np.nan_to_num(metrics(said, labels)["auroc"], nan=0.5))


def _per_class(values: npt.NDArray[np.generic], labels: npt.NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the mean over their images."""
    return float(np.mean([values[labels == c].mean() for c in np.unique(labels)]))
