"""The trials behind the table in docs/explanation/evaluation-recipe.md: full training on breastmnist.

Training and validation images together, in three folds; test images are never looked at. Each
line is a row of the table there. One thread, so that the figures are the same on any number of
cores; single rows can be named.

    OMP_NUM_THREADS=1 python benchmarks/choose_recipe.py FOLDER-OF-SETS [NUMBER ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from medistill.config import Recipe
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import predict_probabilities, train_network
from medistill.runtime import prepare_torch

FOLDS = 3
# Batch, steps, peak learning rate, weight decay, label smoothing.
TRIALS = [
    (64, 300, 1e-3, 0.05, 0.0),
    (64, 400, 3e-3, 0.5, 0.1),
    (16, 600, 3e-3, 0.5, 0.0),
    (16, 1000, 3e-3, 0.5, 0.0),
    (32, 600, 3e-3, 0.05, 0.0),
    (32, 600, 6e-3, 0.05, 0.0),
    (32, 600, 3e-3, 0.5, 0.0),
    (32, 600, 3e-3, 0.5, 0.1),
    (32, 800, 3e-3, 0.5, 0.1),
    (32, 1000, 3e-3, 0.05, 0.0),
    (32, 1000, 3e-3, 0.5, 0.0),
]


def trial(data: PreparedDataset, recipe: Recipe) -> list[float]:
    """Accuracy, balanced accuracy and AUROC, means over folds."""
    splits, task, normalisation = [data.train, data.splits["val"]], data.task, data.normalisation
    pixels, targets = (np.concatenate([getattr(s, name) for s in splits]) for name in ("pixels", "targets"))
    draw, fold = np.random.default_rng(5), np.empty(len(targets), int)
    for column in task.membership(targets).T:
        members = np.flatnonzero(column)
        fold[draw.permutation(members)] = np.arange(len(members)) % FOLDS
    network = ConvNet(data.train.channels, data.train.shape, task.outputs, recipe.width)
    scores = []
    for held_out in range(FOLDS):
        rows = fold != held_out
        shown = TensorSplit(pixels[rows], targets[rows])
        parameters = train_network(network, shown, task, normalisation, recipe, Key(held_out))
        said = predict_probabilities(network, parameters, pixels[~rows], task, normalisation)
        found = task.scores(said, targets[~rows])
        scores.append([found[m] for m in ("accuracy", "balanced_accuracy", "auroc")])
    return [float(x) for x in np.mean(scores, axis=0)]


def main() -> None:
    """Run the trials named, or all."""
    if len(sys.argv) < 2 or os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit(__doc__)
    prepare_torch()
    torch.set_num_threads(1)
    data = prepare(load(Path(sys.argv[1]) / "breastmnist.npz"))
    for number in map(int, sys.argv[2:] or range(len(TRIALS))):
        batch, steps, rate, decay, smoothing = TRIALS[number]
        recipe = Recipe(
            epochs=1, batch_size=batch, min_steps=steps, steps_per_doubling=0, learning_rate=rate,
            weight_decay=decay, label_smoothing=smoothing,
        )  # fmt: skip
        print(number, TRIALS[number], *(f"{x:.3f}" for x in trial(data, recipe)), flush=True)


if __name__ == "__main__":
    main()
