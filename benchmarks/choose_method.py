"""The trials behind docs/explanation/choosing-a-method.md: networks trained on a package, asked validation images.

Test images are never looked at. Each line is a row of the table there. One thread, so that the
figures are the same on any number of cores; all trials take hours, one can be named.

    OMP_NUM_THREADS=1 python benchmarks/choose_method.py FOLDER-OF-SETS [NUMBER ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medistill.config import Recipe
from medistill.data.load import load
from medistill.data.preprocess import Part, Prepared, prepare
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.presets import read_preset
from medistill.distil.problem import make_problem
from medistill.evaluation.calibration import class_shift, shifted
from medistill.evaluation.metrics import metrics
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import Statistics, predict, train
from medistill.package.package import decoded
from medistill.runtime import prepare_torch

DM = {"name": "dm", "iterations": 400}
RANDOM = {"name": "random"}
# Set, method, factor, teachers, further choices.
TRIALS: list[tuple[str, dict[str, Any], int, int, dict[str, Any]]] = [
    *(("bloodcells_28", RANDOM, factor, teachers, {}) for teachers in (0, 1, 2) for factor in (1, 2)),
    ("bloodcells_28", DM, 1, 2, {}),
    ("bloodcells_28", DM, 2, 0, {}),
    ("bloodcells_28", DM, 2, 2, {}),
    ("bloodcells_28", {**DM, "iterations": 200}, 2, 2, {}),
    ("bloodcells_28", {**DM, "iterations": 200, "learning_rate": 5.0}, 2, 2, {}),
    ("bloodcells_28", {"name": "ncfm", "iterations": 300, "real_batch": 128}, 2, 2, {}),
    ("bloodcells_28", {"name": "frepo", "learn_labels": False, "iterations": 400}, 2, 2, {}),
    ("bloodcells_28", DM, 2, 2, {"ipc": 1}),
    ("bloodcells_28", RANDOM, 3, 2, {}),
    ("bloodcells_28", {**DM, "iterations": 200}, 2, 2, {"calibrate": True}),
    *(("breastmnist", RANDOM, factor, teachers, {}) for teachers in (0, 2) for factor in (1, 2, 3)),
    *(("breastmnist", DM, factor, teachers, {}) for teachers in (0, 2) for factor in (1, 2)),
    ("breastmnist", DM, 2, 2, {"divide": True}),
    ("breastmnist", DM, 2, 2, {"balance": True}),
    ("breastmnist", DM, 2, 2, {"balance": True, "calibrate": True}),
    ("breastmnist", DM, 2, 2, {"mix": 0.5}),
    ("pneumoniamnist", RANDOM, 2, 2, {}),
    ("pneumoniamnist", RANDOM, 2, 2, {"calibrate": True}),
    ("pneumoniamnist", DM, 2, 0, {}),
    ("pneumoniamnist", DM, 2, 2, {}),
    ("pneumoniamnist", DM, 2, 2, {"divide": True}),
    ("pneumoniamnist", DM, 2, 2, {"balance": True}),
    ("pneumoniamnist", DM, 2, 2, {"calibrate": True}),
    ("pneumoniamnist", DM, 2, 2, {"balance": True, "calibrate": True}),
    ("breastmnist", {"name": "dsa", **read_preset("dsa", "quick"), "learning_rate": 0.1}, 1, 0, {"networks": 2}),
    *(
        (name, {"name": method, **read_preset(method, "quick")}, 1, 0, {"networks": 2})
        for name in ("breastmnist", "pneumoniamnist")
        for method in ("dsa", "dc", "mtt")
    ),
    ("breastmnist", {"name": "mtt", **read_preset("mtt", "quick"), "learning_rate": 30.0}, 1, 0, {"networks": 2}),
]


def trial(data: Prepared, settings: dict[str, Any], factor: int, teachers: int, more: dict[str, Any]) -> list[float]:
    """Accuracy, balanced accuracy and AUROC on validation images, means over networks."""
    problem, method, key = make_problem(data, more.get("ipc", 10), None, factor), make_method(settings), Key(0)
    made = loop.run(method, problem, key.child("distil"), loop.start(method, problem, key.child("distil")))
    pixels = decoded(problem.quantise(made.images).numpy(), (problem.shape[1], problem.shape[2]))
    labels, statistics = made.labels.numpy(), _statistics(data)
    soft = _soft(data, Part(pixels, labels), teachers, more) if teachers else None
    if more.get("calibrate"):
        soft = _calibrated(data, Part(pixels, labels, soft))
    part, val, scores = Part(pixels, labels, soft), data.parts["val"], []
    for index in range(more.get("networks", 3 if data.dataset.description.name == "breastmnist" else 2)):
        network = ConvNet(*problem.shape, problem.classes, 64)
        parameters = train(network, part, statistics, Recipe(), key.child("network", index))
        found = metrics(predict(network, parameters, val.pixels, statistics), val.labels)
        scores.append([found[m] for m in ("accuracy", "balanced_accuracy", "auroc")])
    return [float(x) for x in np.mean(scores, axis=0)]


def _statistics(data: Prepared) -> Statistics:
    return Statistics(data.preprocessing.mean, data.preprocessing.std, data.dataset.description.flips)


def _soft(data: Prepared, part: Part, teachers: int, more: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Soft labels, with the variants that were tried: balanced teachers, divided by class frequency, mixed."""
    said = []
    for index in range(teachers):
        shown = _rebalanced(data.train, index) if more.get("balance") else data.train
        network = ConvNet(*part.pixels.shape[1:], data.classes, 64)
        parameters = train(network, shown, _statistics(data), Recipe(), Key(7).child("teacher", index))
        said.append(predict(network, parameters, part.pixels, _statistics(data)))
    mean = np.mean(said, axis=0)
    if more.get("divide"):
        mean = mean / (np.array(data.counts) / sum(data.counts))
    soft, share = mean / mean.sum(1, keepdims=True), more.get("mix", 0.0)
    return ((1 - share) * soft + share * np.eye(data.classes)[part.labels]).astype(np.float32)


def _calibrated(data: Prepared, part: Part) -> np.ndarray[Any, np.dtype[np.float32]]:
    """As ``medistill.evaluation.teachers`` does it, with the trials' own draw of real images."""
    network = ConvNet(*part.pixels.shape[1:], data.classes, 64)
    parameters = train(network, part, _statistics(data), Recipe(), Key(99).child("network", 0))
    draw, each = np.random.default_rng(0), 1024 // data.classes
    members = [np.flatnonzero(data.train.labels == label) for label in range(data.classes)]
    rows = np.concatenate([draw.permutation(m)[:each] for m in members])
    said = predict(network, parameters, data.train.pixels[rows], _statistics(data))
    assert part.soft_labels is not None
    return shifted(part.soft_labels, class_shift(said, data.train.labels[rows]))


def _rebalanced(part: Part, seed: int) -> Part:
    """As the trials drew it; ``medistill.evaluation.arms.rebalanced`` draws by key instead."""
    draw, classes = np.random.default_rng(seed), int(part.labels.max()) + 1
    each, rows = len(part) // classes, []
    for label in range(classes):
        members = np.flatnonzero(part.labels == label)
        rows.append(np.concatenate([draw.permutation(members) for _ in range(-(-each // len(members)))])[:each])
    chosen = np.sort(np.concatenate(rows))
    return Part(part.pixels[chosen], part.labels[chosen])


def main() -> None:
    """Run the trials named, or all."""
    if len(sys.argv) < 2 or os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit(__doc__)
    prepare_torch()
    torch.set_num_threads(1)
    for number in map(int, sys.argv[2:] or range(len(TRIALS))):
        name, settings, factor, teachers, more = TRIALS[number]
        found = trial(prepare(load(Path(sys.argv[1]) / f"{name}.npz")), settings, factor, teachers, more)
        print(
            number,
            name,
            settings,
            f"factor {factor}, {teachers} teachers",
            more,
            *(f"{x:.3f}" for x in found),
            flush=True,
        )


if __name__ == "__main__":
    main()
