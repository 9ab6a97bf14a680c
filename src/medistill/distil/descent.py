"""Gradients of losses over many images, in parts that workers compute side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medistill.distil.problem import DistillationProblem
from medistill.nets.convnet import Parameters
from medistill.parallel import summed


def loss_gradient(
    problem: DistillationProblem, loss: Callable[[Parameters, slice], Tensor], parameters: Parameters, images: int
) -> Parameters:
    """Gradient by a network's parameters of the mean loss over so many images.

    Args:
        problem: whose workers compute it.
        loss: of parameters, the mean over a part of the images, a scalar.
        parameters: of the network.
        images: how many there are.
    """

    def of(part: slice) -> list[Tensor]:
        own = {name: p.detach().requires_grad_(True) for name, p in parameters.items()}
        with torch.enable_grad():
            share = loss(own, part) * ((part.stop - part.start) / images)
        return list(torch.autograd.grad(share, list(own.values())))

    return dict(zip(parameters, summed(problem.workers.map(of, problem.parts(images))), strict=True))


def through(
    problem: DistillationProblem, compute: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``compute(images)``, (n, ...), each image's result its own, and what turns a gradient by it into one by images.

    Where only so many images may go through a network together, nothing is kept of them; the way back computes them
    again.
    """
    kept = problem.micro_batch_size is None

    def forward(part: slice) -> tuple[Tensor, Tensor]:
        given = images[part].detach().requires_grad_(True)
        with torch.set_grad_enabled(kept):
            return given, compute(given)

    def backward(of: tuple[tuple[Tensor, Tensor], Tensor]) -> Tensor:
        (given, result), coming = of
        if not kept:
            with torch.enable_grad():
                result = compute(given)
        return torch.autograd.grad(result, given, coming)[0]

    computed = list(problem.workers.map(forward, problem.parts(len(images))))

    def back(coming: Tensor) -> Tensor:
        pieces = coming.split([len(given) for given, _ in computed])
        return torch.cat(list(problem.workers.map(backward, zip(computed, pieces, strict=True))))

    return torch.cat([result.detach() for _, result in computed]), back
