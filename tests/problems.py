"""Problems to distil and single steps, for tests of methods."""

import contextlib

import numpy as np
import torch

from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import RealImages
from medistill.tasks.task import numbered


@contextlib.contextmanager
def float64():
    """New tensors are float64 for a while; also a decorator of tests."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def drawn(problem, stratum, count, key):
    """Real images of a stratum and their targets, drawn as every query draws them."""
    places = torch.randperm(problem.real_per_stratum[stratum], generator=key.generator())[:count]
    answer = problem.real.queried_by(("draw",)).draw(stratum, places).value
    return answer.images, answer.targets


def every_real_image(problem):
    """All real images, sorted by stratum."""
    real = problem.real.queried_by(("draw",))
    places = [torch.arange(size) for size in problem.real_per_stratum]
    return torch.cat([real.draw(stratum, rows).value.images for stratum, rows in enumerate(places)])


def step(method, state, problem, key):
    """The loss and gradients of a step of all strata."""
    strata = range(problem.strata)
    observed = method.observe(state, problem, strata, key)
    return method.gradients(state, observed, problem, strata, key)


def black_problem(ipc, side):
    """Three classes of ten black images, as large as is asked for."""
    task = numbered("multi-class", 3)
    data = TensorSplit(np.zeros((30, 1, side, side), np.uint8), task.targets(np.repeat(np.arange(3), 10)))
    real = RealImages(data, task, Normalisation((0.5,), (0.25,)), torch.device("cpu"))
    return DistillationProblem(real, (ipc,) * 3, (side, side))
