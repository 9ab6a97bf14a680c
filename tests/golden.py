"""Golden numbers: what this version computes from fixed seeds. ``make golden`` writes them anew.

Floating-point kernels differ between machines, so losses are compared within a tolerance;
draws, phantoms and choices are compared exactly.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from medistill.config import Recipe
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import prepare
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.problem import make_problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import predict_probabilities, train_network

PATH = Path(__file__).with_name("golden.json")


def compute() -> dict:
    """Everything that is compared."""
    prepared = prepare(make_phantom(Phantom(classes=3, images=60, size=20)))
    problem = make_problem(prepared, 3, None)
    losses: list[float] = []
    settings = {"iterations": 6, "networks": 3, "filters": 8, "real_batch": 10, "start": "real"}
    method = make_method({"name": "dm", **settings})
    key = Key(0)
    state = loop.run(method, problem, key, loop.start(method, problem, key), lambda _s, told: losses.extend(told))
    data, task = prepared.train, prepared.task
    by_class = np.argsort(task.labels(data.targets), kind="stable")
    pool = [row.tobytes() for row in data.pixels[by_class]]
    chosen = {}
    for name in ("random", "herding", "k-centre"):
        synthetic = problem.quantise(make_method({"name": name}).setup(problem, key).images)
        chosen[name] = [pool.index(row.numpy().tobytes()) for row in synthetic]
    normalisation = replace(prepared.normalisation, flips="both")
    network = ConvNet(1, (20, 20), 3, 8)
    parameters = train_network(network, data, task, normalisation, Recipe(min_steps=10, max_steps=10), key)
    pixels = prepared.splits["test"].pixels
    probabilities = predict_probabilities(network, parameters, pixels, task, normalisation)
    return {
        "phantom": prepared.dataset.fingerprint["sha256"],
        "dm_loss": losses,
        "dm_mean_pixel": float(problem.quantise(state.images).double().mean()),
        "chosen": chosen,
        "mean_probabilities": np.round(probabilities.mean(axis=0), 6).tolist(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(compute(), indent=1) + "\n")
    print(f"written: {PATH}")
