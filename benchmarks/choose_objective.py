"""Trials of objectives that look at trained networks: each from the default's images, asked on validation images.

First the opponents at the same storage with the same teachers' labels: random images, and the default. Then the
objective on trial, from the default's images and labels, every so many steps.

    OMP_NUM_THREADS=1 python benchmarks/choose_objective.py FOLDER-OF-SETS SET [SETTING=VALUE ...]

Settings are the method's fields, and ``method`` (unrolled, closed-form), ``every`` (steps between two lines),
``rate`` and ``ipc``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose_method import asked_of
from closed_form import ClosedForm
from unrolled import Unrolled

from medistill.config import LabelConfig, assign
from medistill.data.image import decoded
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.distil import loop
from medistill.distil.configuration import configured, optimiser_of
from medistill.distil.method import Method, State, make_method
from medistill.distil.problem import DistillationProblem, make_problem
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.parallel import Workers
from medistill.runtime import own_cores, prepare_torch


def shown(problem: DistillationProblem, state: State) -> TensorSplit:
    """The images as a recipient gets them."""
    return TensorSplit(decoded(problem.quantise(state.images).numpy(), problem.shape), state.targets.numpy())


def made(method: Method, problem: DistillationProblem, optimiser: Any = None) -> State:
    """What a method makes."""
    key = Key(0).child("distil")
    return loop.run(method, problem, key, loop.start(method, problem, key, optimiser), optimiser=optimiser)


def students(data: PreparedDataset, distilled: TensorSplit, networks: int = 2) -> str:
    """Balanced accuracy and AUROC on validation images."""
    val, found = data.splits["val"], []
    for index in range(networks):
        said = asked_of(data, distilled, Key(0).child("network", index), val.pixels)
        scores = data.task.scores(said, val.targets)
        found.append([scores["balanced_accuracy"], scores["auroc"]])
    return " ".join(f"{x:.3f}" for x in np.mean(found, axis=0))


def labelled(data: PreparedDataset, sets: list[TensorSplit], config: LabelConfig) -> list[TensorSplit]:
    """The sets with teachers' labels."""
    soft = soft_labels(data.train, sets, data.task, data.normalisation, config, 0)
    return [own.with_soft_labels(labels) for own, labels in zip(sets, soft, strict=True)]


def main() -> None:
    """Run the trials of a set."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    prepare_torch()
    name, begun = sys.argv[2], time.monotonic()
    given: dict[str, Any] = assign({}, sys.argv[3:])
    every, ipc, rate = given.pop("every", 100), given.pop("ipc", 10), given.pop("rate", None)
    kind = {"unrolled": Unrolled, "closed-form": ClosedForm}[given.pop("method", "unrolled")]

    def say(*words: object) -> None:
        print(f"{name} {time.monotonic() - begun:.0f} s", *words, flush=True)

    data = prepare(load(Path(sys.argv[1]) / f"{name}.npz"))
    default, config = configured(None, ipc, None, None, {}, {}, shape=data.preprocessing.image.shape)
    problem = make_problem(data, ipc, None, config.factor).worked_by(Workers(own_cores()))
    own = made(default, problem, optimiser_of(default, config, problem))
    random = made(make_method({"name": "random"}), problem)
    arms = labelled(data, [shown(problem, random), shown(problem, own)], config.labels)
    for title, arm in zip(("random", "default"), arms, strict=True):
        say(title, students(data, arm))

    method = kind(**given)
    asked, key = problem.queried_by(method.queries), Key(1).child("distil")
    optimiser = method.optimiser(asked)
    optimiser = optimiser if rate is None else replace(optimiser, learning_rate=rate)
    state = loop.start(method, asked, key, optimiser)
    soft = arms[1].soft_labels
    assert soft is not None
    state.images, state.label_logits = own.images.clone(), torch.from_numpy(soft).clamp(min=1e-4).log()
    losses: list[float] = []

    def after_step(state: State, new: list[float]) -> None:
        losses.extend(new)
        if state.step % every and state.step != method.iterations:
            return
        assert state.label_logits is not None
        learned = state.label_logits.detach().softmax(1).numpy().astype(np.float16).astype(np.float32)
        say(
            method.info.name, state.step, f"loss {np.mean(losses[-every:]):.3f},",
            students(data, shown(asked, state).with_soft_labels(learned)),
        )  # fmt: skip

    loop.run(method, asked, key, state, after_step, optimiser=optimiser)


if __name__ == "__main__":
    main()
