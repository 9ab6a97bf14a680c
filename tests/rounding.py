"""What tests of fast layers compare: a network's scores and gradients, in any precision."""

from collections.abc import Callable

import torch
from torch.nn import functional

from medistill.keys import Key
from medistill.nets.convnet import ConvNet


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Length of the difference over that of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def small_network(channels: int) -> tuple[ConvNet, Callable[[torch.dtype], list[torch.Tensor]]]:
    """A ConvNet, and what computes its scores of 20 images with their loss's gradients by images and weights."""
    network = ConvNet(channels, (28, 28), 3, filters=16)
    start = network.parameters(Key(1))
    images = torch.randn(20, channels, 28, 28, generator=Key(2).generator())
    labels = torch.arange(20) % 3

    def results(kind: torch.dtype) -> list[torch.Tensor]:
        own = {name: t.to(kind).requires_grad_(True) for name, t in start.items()}
        x = images.to(kind).requires_grad_(True)
        scores = network.logits(own, x)
        asked = [x, *(t for t in own.values() if t.ndim > 1)]
        return [scores.detach(), *torch.autograd.grad(functional.cross_entropy(scores, labels), asked)]

    return network, results
