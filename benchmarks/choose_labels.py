"""Trials of teachers and their labels: how long teachers are trained, temperature, several labels for each image.

Random images and the default's, stored alike, get the same teachers' labels; networks trained on them are asked
validation images. With V views each image is shown in V fixed changes, each with a label of its own; labels alone are
sent for these, as a recipient can make the views.

    OMP_NUM_THREADS=1 python benchmarks/choose_labels.py FOLDER-OF-SETS SET [IPC]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from choose_objective import made, shown, students

from medistill.augment import augment_each, sample_augmentation
from medistill.config import LabelConfig, Recipe
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.distil.configuration import configured, optimiser_of
from medistill.distil.method import make_method
from medistill.distil.problem import make_problem
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.runtime import prepare_torch

WHOLE = Recipe()
STEPS = (75, 150, 300, 600, 1200, WHOLE.max_steps)
"""Of teachers, at most."""

TEMPERATURES = (0.5, 2.0, 4.0)
VIEWS = (5, 10)


def labels(steps: int = WHOLE.max_steps, temperature: float = 1.0) -> LabelConfig:
    """Two teachers of so many steps at most."""
    recipe = Recipe(max_steps=steps, min_steps=min(steps, WHOLE.min_steps))
    return LabelConfig(teachers=2, temperature=temperature, recipe=recipe)


def views(data: PreparedDataset, images: TensorSplit, number: int) -> TensorSplit:
    """Each image in so many fixed changes, the first as it is."""
    kept, pixels = [images.pixels], torch.from_numpy(np.ascontiguousarray(images.pixels))
    x = data.normalisation.normalise(pixels)
    for view in range(1, number):
        numbers = sample_augmentation(len(x), Key(0).child("view", view).generator())
        changed = augment_each(x, numbers, data.normalisation.flips)
        kept.append(data.normalisation.quantise(changed).numpy())
    return TensorSplit(np.concatenate(kept), np.concatenate([images.targets] * number))


def main() -> None:
    """Run the trials of a set."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    prepare_torch()
    name, ipc, begun = sys.argv[2], int((sys.argv[3:] or ["10"])[0]), time.monotonic()
    data = prepare(load(Path(sys.argv[1]) / f"{name}.npz"))
    default, config = configured(None, ipc, None, None, {}, {}, shape=data.preprocessing.image.shape)
    problem = make_problem(data, ipc, None, config.factor)
    arms = {
        "random": shown(problem, made(make_method({"name": "random"}), problem)),
        "default": shown(problem, made(default, problem, optimiser_of(default, config, problem))),
    }

    def line(what: str, number: int, how: LabelConfig) -> None:
        sets = [views(data, arm, number) if number > 1 else arm for arm in arms.values()]
        soft = soft_labels(data.train, sets, data.task, data.normalisation, how, 0)
        scores = [students(data, own.with_soft_labels(own_soft)) for own, own_soft in zip(sets, soft, strict=True)]
        told = ", ".join(f"{arm} {score}" for arm, score in zip(arms, scores, strict=True))
        print(f"{name} {ipc} per class, {time.monotonic() - begun:.0f} s: {what}: {told}", flush=True)

    for steps in STEPS:
        line(f"teachers of at most {steps} steps", 1, labels(steps))
    for temperature in TEMPERATURES:
        line(f"temperature {temperature:g}", 1, labels(temperature=temperature))
    for number in VIEWS:
        line(f"{number} labels for each image", number, labels())


if __name__ == "__main__":
    main()
