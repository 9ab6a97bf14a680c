"""The one recipe that trains a network, for every arm of every comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medistill.augment import for_training
from medistill.config import Recipe
from medistill.data.dataset import Flips
from medistill.data.preprocess import Part
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.pixels import Pixels, normalise
from medistill.nets.zoo import Network
from medistill.types import Probabilities

AfterStep = Callable[[int, Parameters], None]


@dataclass(frozen=True)
class Statistics:
    """What a network needs to see pixels: mean and standard deviation per channel, and flip safety."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: Flips


def steps_for(recipe: Recipe, images: int) -> int:
    """Gradient steps for that many training images: the recipe's epochs, within its bounds.

    The lower bound rises with the logarithm of the number of images, because a larger set
    holds more to learn than few images do, but not in proportion.
    """
    batches = images / min(recipe.batch, images)
    least = recipe.least_steps + recipe.steps_per_doubling * math.log2(batches)
    return int(min(recipe.most_steps, max(least, recipe.epochs * batches)))


def images_seen(recipe: Recipe, images: int) -> int:
    """Images that go through a network while it is trained on so many."""
    return steps_for(recipe, images) * min(recipe.batch, images)


def one_cycle(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear rise over the first fifth, then half a cosine to zero.

    Smith, Topin, "Super-Convergence", 2018, without the cycle of the momentum.
    """
    rise = max(1, round(steps / 5))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class Order:
    """Which images each step sees: all once in an order drawn anew for each epoch, then again.

    Args:
        images: how many there are.
        batch: how many a step sees.
        key: of the network that is trained.
    """

    def __init__(self, images: int, batch: int, key: Key) -> None:
        self.images, self.batch, self.key = images, batch, key
        self.order, self.position, self.epoch = torch.empty(0, dtype=torch.int64), 0, 0

    def next(self) -> Tensor:
        """Rows of the next step, (batch,)."""
        if self.position + self.batch > len(self.order):
            self.order = torch.randperm(self.images, generator=self.key.child("epoch", self.epoch).generator())
            self.position, self.epoch = 0, self.epoch + 1
        self.position += self.batch
        return self.order[self.position - self.batch : self.position]


def precision_of(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which layers compute in the recipe's precision; parameters and their updates stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


AT_ONCE_MB = 500.0
"""Megabytes of a network's inner values that are held at once; of more images the gradient is added up in parts."""


ASKED = 64
"""Images that a network is asked about at once, small enough for the cache."""


def at_once(network: Network, images: int) -> int:
    """How many of so many images go through a network together, in training and when it is asked."""
    each = network.activation_mb
    return images if each is None else max(1, min(images, int(AT_ONCE_MB / each)))


Update = Callable[[Iterable[Tensor]], None]


def descent(learned: list[Tensor], recipe: Recipe, steps: int) -> Update:
    """What takes a step down the sum of some losses, by the recipe's optimiser and schedule.

    A loss is asked for when that before it is done with, so that only one's inner values are held.
    """
    optimiser = torch.optim.AdamW(learned, recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps))

    def update(losses: Iterable[Tensor]) -> None:
        optimiser.zero_grad()
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()

    return update


def train(
    network: Network,
    part: Part,
    statistics: Statistics,
    recipe: Recipe,
    key: Key,
    after_step: AfterStep | None = None,
    device: torch.device | None = None,
) -> Parameters:
    """Train a network from new parameters.

    Args:
        network: its shape.
        part: ``uint8`` pixels (n, c, h, w) and labels (n,), or soft labels, which are not smoothed further.
        statistics: how pixels are normalised and which mirror images are allowed.
        recipe: the schedule.
        key: parameters, order of images and augmentation follow from it.
        after_step: called with the number of steps done and the parameters.
        device: where; the CPU if not given. What is random is drawn on the CPU, alike for every device.

    Returns:
        The parameters after the last step.
    """
    device = device or torch.device("cpu")
    soft = part.soft_labels is not None
    labels = torch.from_numpy(part.labels if part.soft_labels is None else part.soft_labels).to(device)
    pixels = Pixels(part.pixels, device)
    parameters = {name: tensor.to(device) for name, tensor in network.parameters(key.child("parameters")).items()}
    fixed = network.buffers
    learned = [tensor.requires_grad_(True) for name, tensor in parameters.items() if name not in fixed]
    steps, batch = steps_for(recipe, len(part)), min(recipe.batch, len(part))
    update, order = descent(learned, recipe, steps), Order(len(part), batch, key)
    smoothing, size = 0.0 if soft else recipe.label_smoothing, at_once(network, batch)

    def losses(x: Tensor, wanted: Tensor) -> Iterator[Tensor]:
        for own, labels_of_own in zip(x.split(size), wanted.split(size), strict=True):
            with precision_of(recipe, device):
                scores = network.logits(parameters, own, training=True)
            share = len(own) / len(x)
            yield share * functional.cross_entropy(scores.float(), labels_of_own, label_smoothing=smoothing)

    for step in range(steps):
        rows = order.next()
        x = normalise(pixels[rows], statistics.mean, statistics.std)
        if recipe.augment:
            x = for_training(x, key.child("augment", step).generator(), statistics.flips)
        update(losses(x, labels[rows]))
        if after_step is not None:
            after_step(step + 1, parameters)
    return {name: tensor.detach() for name, tensor in parameters.items()}


def predict(
    network: Network, parameters: Parameters, pixels: npt.NDArray[np.uint8], statistics: Statistics
) -> Probabilities:
    """Class probabilities (n, classes) of ``uint8`` pixels (n, c, h, w), computed where the parameters are.

    Where mirror images keep their class, the mean over an image and its mirror image.
    """
    mirrored = statistics.flips != "none"
    seen_by = Pixels(pixels, next(iter(parameters.values())).device)
    with torch.inference_mode():
        chunks, size = [], at_once(network, ASKED)
        for start in range(0, len(pixels), size):
            x = normalise(seen_by[start : start + size], statistics.mean, statistics.std)
            views = [x, x.flip(3)] if mirrored else [x]
            seen = [network.logits(parameters, view).double().softmax(1) for view in views]
            chunks.append(sum(seen[1:], seen[0]) / len(seen))
    return torch.cat(chunks).cpu().numpy()
