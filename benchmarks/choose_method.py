"""The trials behind docs/explanation/choosing-a-method.md: networks trained on a package, asked validation images.

Test images are never looked at. Each line is a row of a table there, measured with real first images; the last
twelve compare first images, the thirty before them rates from noise. One thread, so that the figures are the same on
any number of cores; all trials take hours, one can be named.

    OMP_NUM_THREADS=1 python benchmarks/choose_method.py FOLDER-OF-SETS [NUMBER ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medistill.aliases import Pixels, Probabilities, SoftLabels
from medistill.config import OptimiserConfig, Recipe
from medistill.data.image import decoded
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.presets import read_preset
from medistill.distil.problem import make_problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import predict_probabilities, train_network
from medistill.runtime import prepare_torch

DM = {"name": "dm", "iterations": 400, "start": "real"}
LABELLED = {"balance": True, "calibrate": True}
FIRST_IMAGES = (
    ("real", 200, {"learning_rate": 1.0}), ("noise", 200, {"learning_rate": 1.0}),
    ("noise", 400, {"learning_rate": 5.0}),
)  # fmt: skip
RATES = (
    *(("bloodcells_28", 1, rate, "constant") for rate in (5.0, 1.5, 0.5)),
    *(("bloodcells_28", 1, rate, "cosine") for rate in (5.0, 1.5)),
    *(("breastmnist", 1, rate, "constant") for rate in (5.0, 1.5, 0.5)), ("breastmnist", 1, 5.0, "cosine"),
    ("bloodcells_28", 3, 5.0, "constant"), ("bloodcells_28", 3, 5.0, "cosine"),
    ("pneumoniamnist", 3, 5.0, "constant"), ("pneumoniamnist", 3, 5.0, "cosine"),
    ("bloodcells_28", 10, 5.0, "cosine"), ("bloodcells_28", 10, 10.0, "cosine"),
    ("all_leukemia4_28", 10, 5.0, "constant"), ("all_leukemia4_28", 10, 10.0, "cosine"),
    ("breastmnist", 10, 5.0, "constant"), ("breastmnist", 10, 10.0, "cosine"),
    ("bloodcells_28", 50, 25.0, "constant"),
)  # fmt: skip
"""Set, images per class, learning rate and its schedule, from noise, at half the side and with teachers."""
PLAIN_RATES = tuple(
    (name, ipc, 5.0, schedule)
    for name, ipc in (
        ("bloodcells_28", 1), ("breastmnist", 1), ("bloodcells_28", 10), ("breastmnist", 10), ("pneumoniamnist", 10),
    )
    for schedule in ("constant", "cosine")
)  # fmt: skip
"""The same of whole images without teachers."""
RANDOM = {"name": "random"}


def quick(name: str) -> dict[str, Any]:
    """A method at its quick preset, from real images."""
    return {**read_preset(name, "quick")["method"], "start": "real"}


def rate(name: str, learning_rate: float | None = None) -> dict[str, Any]:
    """The further choices of a method at its quick preset: its optimiser, perhaps at another rate."""
    preset = read_preset(name, "quick")["optimiser"]
    return {"networks": 2, "optimiser": {**preset, **({"learning_rate": learning_rate} if learning_rate else {})}}


# Set, method, factor, teachers, further choices.
TRIALS: list[tuple[str, dict[str, Any], int, int, dict[str, Any]]] = [
    *(("bloodcells_28", RANDOM, factor, teachers, {}) for teachers in (0, 1, 2) for factor in (1, 2)),
    ("bloodcells_28", DM, 1, 2, {}),
    ("bloodcells_28", DM, 2, 0, {}),
    ("bloodcells_28", DM, 2, 2, {}),
    ("bloodcells_28", {**DM, "iterations": 200}, 2, 2, {}),
    ("bloodcells_28", {**DM, "iterations": 200}, 2, 2, {"optimiser": {"learning_rate": 5.0}}),
    ("bloodcells_28", {"name": "ncfm", "iterations": 300, "real_batch": 128, "start": "real"}, 2, 2, {}),
    ("bloodcells_28", {"name": "frepo", "learn_labels": False, "iterations": 400, "start": "real"}, 2, 2, {}),
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
    ("breastmnist", quick("dsa"), 1, 0, rate("dsa", 0.1)),
    *(
        (name, quick(method), 1, 0, rate(method))
        for name in ("breastmnist", "pneumoniamnist")
        for method in ("dsa", "dc", "mtt")
    ),
    ("breastmnist", quick("mtt"), 1, 0, rate("mtt", 30.0)),
    *(
        (
            name, {"name": "dm", "iterations": 400, "start": "noise"}, 2, 2,
            {**LABELLED, "ipc": ipc, "networks": 2, "optimiser": {"learning_rate": rate, "schedule": schedule}},
        )
        for name, ipc, rate, schedule in RATES
    ),
    *(
        (
            name, {"name": "dm", "iterations": 400, "start": "noise"}, 1, 0,
            {"ipc": ipc, "networks": 2, "optimiser": {"learning_rate": rate, "schedule": schedule}},
        )
        for name, ipc, rate, schedule in PLAIN_RATES
    ),
    *(
        (name, {"name": "dm", "iterations": steps, "start": start}, 2, 2, {**LABELLED, "optimiser": optimiser})
        for name in ("bloodcells_28", "all_leukemia4_28", "breastmnist", "pneumoniamnist")
        for start, steps, optimiser in FIRST_IMAGES
    ),
]  # fmt: skip


def trial(
    data: PreparedDataset, settings: dict[str, Any], factor: int, teachers: int, more: dict[str, Any]
) -> list[float]:
    """Accuracy, balanced accuracy and AUROC on validation images, means over networks."""
    problem, method, key = make_problem(data, more.get("ipc", 10), None, factor), make_method(settings), Key(0)
    optimiser = method.optimiser(problem).configured(OptimiserConfig.model_validate(more.get("optimiser", {})))
    here, task, val = key.child("distil"), data.task, data.splits["val"]
    made = loop.run(method, problem, here, loop.start(method, problem, here, optimiser), optimiser=optimiser)
    pixels = decoded(problem.quantise(made.images).numpy(), problem.shape)
    distilled, scores = TensorSplit(pixels, made.targets.numpy()), []
    if teachers:
        distilled = distilled.with_soft_labels(_soft(data, distilled, teachers, more))
    if more.get("calibrate"):
        distilled = distilled.with_soft_labels(_calibrated(data, distilled))
    for index in range(more.get("networks", 3 if data.dataset.description.name == "breastmnist" else 2)):
        found = task.scores(asked_of(data, distilled, key.child("network", index), val.pixels), val.targets)
        scores.append([found[m] for m in ("accuracy", "balanced_accuracy", "auroc")])
    return [float(x) for x in np.mean(scores, axis=0)]


def asked_of(data: PreparedDataset, shown: TensorSplit, key: Key, pixels: Pixels) -> Probabilities:
    """What a network trained on the images shown says of others."""
    network = ConvNet(shown.channels, shown.shape, data.task.outputs, 64)
    parameters = train_network(network, shown, data.task, data.normalisation, Recipe(), key)
    return predict_probabilities(network, parameters, pixels, data.task, data.normalisation)


def _soft(data: PreparedDataset, distilled: TensorSplit, teachers: int, more: dict[str, Any]) -> SoftLabels:
    """Soft labels, with the variants that were tried: balanced teachers, divided by class frequency, mixed."""
    said = []
    for index in range(teachers):
        shown = _rebalanced(data, index) if more.get("balance") else data.train
        said.append(asked_of(data, shown, Key(7).child("teacher", index), distilled.pixels))
    mean = np.mean(said, axis=0)
    if more.get("divide"):
        mean = mean / (np.array(data.real_per_stratum) / sum(data.real_per_stratum))
    soft, share = mean / mean.sum(1, keepdims=True), more.get("mix", 0.0)
    return ((1 - share) * soft + share * distilled.targets).astype(np.float32)


def _calibrated(data: PreparedDataset, distilled: TensorSplit) -> SoftLabels:
    """As ``medistill.evaluation.teachers`` does it, with the trials' own draw of real images."""
    draw, each = np.random.default_rng(0), 1024 // data.task.outputs
    rows = np.concatenate([draw.permutation(members)[:each] for members in _members(data)])
    said = asked_of(data, distilled, Key(99).child("network", 0), data.train.pixels[rows])
    assert distilled.soft_labels is not None
    return data.task.shifted(distilled.soft_labels, data.task.shift(said, data.train.targets[rows]))


def _rebalanced(data: PreparedDataset, seed: int) -> TensorSplit:
    """As the trials drew it; ``medistill.evaluation.arms.rebalanced`` draws by key instead."""
    draw, train = np.random.default_rng(seed), data.train
    each, rows = len(train) // data.task.outputs, []
    for members in _members(data):
        rows.append(np.concatenate([draw.permutation(members) for _ in range(-(-each // len(members)))])[:each])
    chosen = np.sort(np.concatenate(rows))
    return TensorSplit(train.pixels[chosen], train.targets[chosen])


def _members(data: PreparedDataset) -> list[npt.NDArray[np.intp]]:
    """Rows of the training images of each class."""
    return [np.flatnonzero(column) for column in data.task.membership(data.train.targets).T]


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
