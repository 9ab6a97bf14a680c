"""The positive control of an attack: networks overfitted to few images. An attack that fails there says nothing
elsewhere.
"""

from __future__ import annotations

import numpy as np

from medistill.audits.attacks import Array, Took, log_odds
from medistill.audits.audit import Population
from medistill.audits.shadows import Networks, halves, halves_of
from medistill.config import Recipe
from medistill.data.arrays import take
from medistill.data.preprocess import TensorSplit
from medistill.evaluation.duration import Pace
from medistill.keys import Key
from medistill.package.package import Package

IMAGES, NETWORKS = 400, 8
"""In all, of which each network learns half."""


def control_signals(
    package: Package, members: Population, steps: int, key: Key, progress: bool
) -> tuple[Array, Took]:
    """Log odds that networks give the true labels of a few images, and which networks learned them,
    (images, networks).

    Nothing keeps these from overfitting: no changed images, no smoothed labels, no weight decay.
    """
    everyone = members.split
    rows = np.sort(key.child("images").numpy().permutation(len(everyone))[:IMAGES])
    few = TensorSplit(take(everyone.pixels, rows), everyone.targets[rows])
    belongs = halves(len(few), NETWORKS, key.child("halves"))
    sets = halves_of(few, belongs)
    networks = Networks(package, _overfitting(steps), key.integer() % 2**31, progress)
    return log_odds(networks.likelihoods("training the positive control", sets, few)), belongs


def _overfitting(steps: int) -> Recipe:
    plain = Recipe(min_steps=steps, max_steps=steps, steps_per_doubling=0)
    return plain.model_copy(update={"augment": False, "label_smoothing": 0.0, "weight_decay": 0.0})


def control_seconds(package: Package, members: Population, steps: int) -> float:
    """How long :func:`control_signals` takes, about, where nothing is kept."""
    few = min(IMAGES, len(members))
    pace = Pace(members.split, package.task, package.preprocessing.normalisation, _overfitting(steps))
    return pace.seconds([few // 2] * NETWORKS, few)
