"""How representative a distilled set is of the real images, in seconds and without training.

Every score compares the distilled images with real training images, class by class, in spaces
that no method optimises in (:mod:`medistill.prediction.spaces`). Test images are never seen.

Sources: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012; Székely, Rizzo, "Energy statistics",
2013; Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017; Naeem et al.,
"Reliable fidelity and diversity metrics for generative models", ICML 2020.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from medistill.data.preprocess import Part
from medistill.evaluation.arms import subset
from medistill.keys import Key
from medistill.prediction.spaces import SPACES, Features, fit

MOST = 400
"""Real images of each class that are looked at."""

NEIGHBOURS = 5


def representativeness(distilled: Part, real: Part, classes: int, seed: int = 0) -> dict[str, float]:
    """Scores by name, each a mean over classes that both have; higher is more representative.

    ``<space>.<score>``: ``mmd``, ``energy`` and ``frechet`` are distances with the sign turned, zero where the
    distributions are the same; ``density`` and ``coverage`` are those of Naeem et al. (coverage within 0 to 1);
    ``nearest`` is the share of real images whose nearest distilled image is of their class, and ``ridge`` that
    share for a ridge regression of the distilled labels on the features, both 0 to 1.

    Args:
        distilled: ``uint8`` images (n, c, h, w) at the size that networks see, with labels.
        real: the training images, prepared alike.
        classes: number of classes.
        seed: of the sample of real images.
    """
    sample = subset(real, [MOST] * classes, Key(seed).child("representativeness"))
    scores = {}
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
        scores[f"{name}.ridge"] = ridge_recall(made, distilled, classes, seen, sample.labels)
    return scores


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
    said = made_labels[cdist(seen, made).argmin(axis=1)]
    return _recall(said, labels)


def ridge_recall(made: Features, part: Part, classes: int, seen: Features, labels: npt.NDArray[np.int64]) -> float:
    """Mean recall of a kernel ridge regression of a part's labels on its features, asked about other images.

    The kernel is Gaussian, its width the median distance. No step is taken: one linear system is solved.
    """
    wanted = targets(part, classes)
    width = np.median(cdist(seen[:: max(1, len(seen) // 200)], made)) or 1.0
    kernel = np.exp(-np.square(cdist(made, made) / width) / 2)
    weights = np.linalg.solve(kernel + 0.1 * np.eye(len(made)), wanted - wanted.mean(axis=0))
    said = np.exp(-np.square(cdist(seen, made) / width) / 2) @ weights + wanted.mean(axis=0)
    return _recall(said.argmax(axis=1), labels)


def _recall(said: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    """Mean recall over the classes that occur."""
    return float(np.mean([(said[labels == c] == c).mean() for c in np.unique(labels)]))
