"""The trials behind "Grades" in docs/explanation/choosing-a-method.md: whether a loss that knows the order helps.

Teachers as ``distill`` trains them, on training and validation images together, in three folds that keep a patient's
images together; test images are never looked at. One thread, so that the figures are the same on any number of cores.

    OMP_NUM_THREADS=1 python benchmarks/choose_order.py FOLDER-OF-SETS [SET ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medistill.config import DataConfig, Recipe
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.evaluation.arms import rebalanced
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import predict_probabilities, train_network
from medistill.runtime import prepare_torch
from medistill.tasks.ordinal import Ordinal

FOLDS = 3
SETS = ("fundus_dr3_28", "alz4_28")
METRICS = ("accuracy", "balanced_accuracy", "auroc", "quadratic_kappa", "mean_absolute_error")


def near_grades(sharpness: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy with labels that fall off with the squared distance (SORD: Diaz, Marathe, CVPR 2019)."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        grades = torch.arange(logits.shape[1], dtype=logits.dtype)
        distance = (targets.argmax(1).to(logits.dtype)[:, None] - grades).square()
        return functional.cross_entropy(logits, (-sharpness * distance).softmax(1))

    return loss


def earth_mover(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy and the squared distance of cumulative probabilities (Hou, Yu, Samaras, 2016)."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        plain = functional.cross_entropy(logits, targets.argmax(1), label_smoothing=0.1)
        apart = logits.softmax(1).cumsum(1) - targets.to(logits.dtype).cumsum(1)
        return plain + weight * apart.square().sum(1).mean()

    return loss


def classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the recipe's label smoothing, which spreads over all classes alike."""
    return functional.cross_entropy(logits, targets.argmax(1), label_smoothing=Recipe().label_smoothing)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": classes,
    "near grades, 2": near_grades(2.0),
    "near grades, 1": near_grades(1.0),
    "earth mover, 1": earth_mover(1.0),
    "earth mover, 5": earth_mover(5.0),
}


def folds(patients: npt.NDArray[np.str_], grades: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A fold for each image; a patient's images stay together, patients of each grade go to all folds."""
    draw, fold = np.random.default_rng(5), np.empty(len(grades), np.int64)
    names, first = np.unique(patients, return_index=True)
    for grade in np.unique(grades[first]):
        members = draw.permutation(names[grades[first] == grade])
        for number, name in enumerate(members):
            fold[patients == name] = number % FOLDS
    return fold


def trial(data: PreparedDataset, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[float], list[float]]:
    """Means and standard deviations of the metrics over folds."""
    task = Ordinal(data.task.class_names)
    object.__setattr__(task, "loss", lambda logits, targets, smoothing=0.0: loss(logits, targets))
    train, val = data.train, data.splits["val"]
    pixels, targets = (np.concatenate([getattr(s, name) for s in (train, val)]) for name in ("pixels", "targets"))
    given = [data.dataset.splits[name].patients for name in ("train", "val")]
    patients = np.concatenate([p for p in given if p is not None])
    fold, recipe = folds(patients, targets.argmax(1)), Recipe()
    network = ConvNet(train.channels, train.shape, task.outputs, recipe.width)
    scores = []
    for held_out in range(FOLDS):
        rows, key = fold != held_out, Key(held_out)
        shown = rebalanced(TensorSplit(pixels[rows], targets[rows]), task, key)
        parameters = train_network(network, shown, task, data.normalisation, recipe, key)
        said = predict_probabilities(network, parameters, pixels[~rows], task, data.normalisation)
        measured = task.scores(said, targets[~rows])
        scores.append([measured[m] for m in METRICS])
    return np.mean(scores, axis=0).tolist(), np.std(scores, axis=0, ddof=1).tolist()


def main() -> None:
    """Run every loss on the sets named, or on both."""
    if len(sys.argv) < 2 or os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit(__doc__)
    prepare_torch()
    torch.set_num_threads(1)
    for name in sys.argv[2:] or SETS:
        data = prepare(load(Path(sys.argv[1]) / f"{name}.npz", DataConfig(task="ordinal")))
        for title, loss in LOSSES.items():
            means, spread = trial(data, loss)
            figures = " ".join(f"{m} {x:.3f} ({s:.3f})" for m, x, s in zip(METRICS, means, spread, strict=True))
            print(f"{name}, {title}: {figures}", flush=True)


if __name__ == "__main__":
    main()
