"""Trials of private packages: how the budget is spent. Validation images of sets that the tables do not show.

Each line is a distillation as ``distill --ipc 10 --epsilon E`` does it, with changed settings, and a network trained
on it. Noise is drawn anew each time, so figures differ between runs; several draws show by how much. Without noise
(ε = 0 here) a line shows what cutting and averaging alone cost.

    OMP_NUM_THREADS=1 python benchmarks/choose_private.py FOLDER-OF-SETS SET EPSILON,... [SETTING=VALUE ...]

With ``lengths`` for ε it tells how far real embeddings lie from the mean of generated ones.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from choose_method import asked_of
from torch import Tensor

from medistill.commands.guarantee import mechanism_for
from medistill.config import assign
from medistill.data.image import decoded
from medistill.data.load import load
from medistill.data.preprocess import TensorSplit, prepare
from medistill.distil import loop
from medistill.distil.configuration import configured, optimiser_of
from medistill.distil.private_images import generated_images
from medistill.distil.problem import make_problem
from medistill.keys import Key
from medistill.runtime import prepare_torch


def trial(path: Path, epsilon: float, settings: list[str]) -> str:
    """Balanced accuracy and AUROC on validation images, and how loud the noise was."""
    asked = assign({"privacy": {"epsilon": epsilon or 1.0}}, settings)
    _, config = configured(None, 10, None, None, asked, {})
    data = prepare(load(path, config.data), config.data)
    method, config = configured(None, 10, None, None, asked, {}, shape=data.preprocessing.image.shape)
    assert config.privacy is not None
    mechanism = mechanism_for(config.privacy, data)
    if not epsilon:
        mechanism = replace(mechanism, noise_multiplier=0.0)
    problem, key = make_problem(data, 10, None, config.factor, None, mechanism), Key(0).child("distil")
    optimiser = optimiser_of(method, config, problem)
    state = loop.start(method, problem, key, optimiser)
    loop.run(method, problem, key, state, optimiser=optimiser)
    pixels = decoded(problem.quantise(state.images).numpy(), problem.shape)
    val, distilled = data.splits["val"], TensorSplit(pixels, state.targets.numpy())
    found = data.task.scores(asked_of(data, distilled, Key(0).child("network", 0), val.pixels), val.targets)
    numbers, fewest = state.buffers["means"][:, 0].numel(), float(state.buffers["counts"].min())
    noise = mechanism.noise_multiplier * mechanism.sensitivity * math.sqrt(numbers) / fewest
    return f"{found['balanced_accuracy']:.3f} {found['auroc']:.3f}, noise {noise:.2f} of the longest embedding"


def lengths(path: Path) -> str:
    """Of 800 training images, in the median length of generated images' embeddings from their mean."""
    _, config = configured(None, 10, None, None, {"privacy": {"epsilon": 1.0}}, {})
    data = prepare(load(path, config.data), config.data)
    method, config = configured(
        None, 10, None, None, {"privacy": {"epsilon": 1.0}}, {}, shape=data.preprocessing.image.shape
    )
    problem, key = make_problem(data, 10, None, config.factor), Key(0).child("distil")
    network, keys = method.network(problem), [key.child("network", slot) for slot in range(method.networks)]
    parameters = [problem.parameters(network, here) for here in keys]

    def embedded(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            images = problem.normalisation.normalise(pixels)
            return torch.cat([method.embed(network, own, images, 100) for own in parameters], 1)

    generated = embedded(generated_images(problem.channels, problem.shape))
    drawn = torch.randperm(len(data.train), generator=Key(0).child("drawn").generator())[:800]
    real = embedded(torch.as_tensor(data.train.pixels)[drawn])
    origin = generated.mean(0)
    unit = (generated - origin).norm(dim=1).median()
    far, near = ((real - of).norm(dim=1).median() / unit for of in (origin, real.mean(0)))
    common = (real.mean(0) - origin).norm() / unit
    return f"median {far:.2f} from generated images' mean, {near:.2f} from their own; these are {common:.2f} apart"


def main() -> None:
    """Run the trials of a set."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    prepare_torch()
    path = Path(sys.argv[1]) / f"{sys.argv[2]}.npz"
    if sys.argv[3] == "lengths":
        print(sys.argv[2], lengths(path))
        return
    for epsilon in map(float, sys.argv[3].split(",")):
        print(sys.argv[2], f"ε = {epsilon:g}", *sys.argv[4:], trial(path, epsilon, sys.argv[4:]), flush=True)


if __name__ == "__main__":
    main()
