"""Roughly the package that a method would make of data, in seconds: what small networks are trained on to foretell.

A coreset's is the very one. A method that learns images takes the few steps of :meth:`Method.preview`, or none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medistill.config import DistilConfig
from medistill.data.arrays import take
from medistill.data.preprocess import Part, Prepared
from medistill.distil import loop
from medistill.distil.method import Method
from medistill.distil.problem import make_problem
from medistill.keys import Key
from medistill.package.package import decoded

MOST_IMAGES = 12_000
"""Training images that a preview is made of, at most. Of more a sample is taken, and no coreset is the very one."""


def preview(prepared: Prepared, method: Method, config: DistilConfig) -> Part:
    """Images at the size that networks see, (n, c, h, w) ``uint8``, and their classes; without soft labels.

    Args:
        prepared: the data; only training images are used.
        method: what would distil.
        config: how many images, how small they are stored, and the seed.

    Raises:
        ConfigError: see :func:`medistill.distil.problem.make_problem`.
    """
    problem = make_problem(_sampled(prepared), config.ipc, config.ratio, config.factor)
    key, cheap = Key(config.seed).child("distil"), method.preview()
    if cheap is None:
        pixels = problem.quantise(problem.encode(problem.random_images(key)))
    else:
        cheap.prepare(problem, key, lambda _done: None)
        state = loop.start(cheap, problem, key)
        pixels = problem.quantise(loop.run(cheap, problem, key, state).images)
    return Part(decoded(pixels.numpy(), problem.shape[1:]), problem.labels.numpy())


def _sampled(prepared: Prepared) -> Prepared:
    """The same data with at most :data:`MOST_IMAGES` training images, of each class its share of them."""
    train = prepared.train
    share = MOST_IMAGES / len(train)
    if share >= 1:
        return prepared
    rows = []
    for label in range(prepared.classes):
        members = Key(0).child("preview", label).numpy().permutation(np.flatnonzero(train.labels == label))
        rows.append(members[: max(1, round(share * len(members)))])
    return with_training(prepared, np.sort(np.concatenate(rows)))


def with_training(prepared: Prepared, rows: npt.NDArray[np.intp]) -> Prepared:
    """The same data with these training images alone, prepared as they are."""
    train = prepared.train
    parts = {**prepared.parts, "train": Part(take(train.pixels, rows), train.labels[rows])}
    splits = {**prepared.dataset.splits, "train": prepared.dataset.train.take(rows)}
    return replace(prepared, parts=parts, dataset=replace(prepared.dataset, splits=splits))
