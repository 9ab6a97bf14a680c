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
from torch.optim.adamw import adamw

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


class Descent:
    """Takes steps down the sum of some losses, by AdamW and the recipe's schedule.

    Args:
        learned: what is changed, in place, by name.
        recipe: optimiser and schedule.
        steps: how many will be taken in all.

    Source: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, as torch's function: its
    ``torch.optim.AdamW`` loads a compiler that nothing here uses, into every process that trains.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, learned: Parameters, recipe: Recipe, steps: int) -> None:
        self.learned, self.recipe, self.steps, self.done = learned, recipe, steps, 0
        self.moments = {
            f"{kind}.{name}": torch.zeros_like(t) for kind in ("first", "second") for name, t in learned.items()
        }
        self.moments |= {f"count.{name}": torch.zeros(()) for name in learned}

    def step(self, losses: Iterable[Tensor]) -> None:
        """One step. A loss is asked for when that before it is done with: only one's inner values are held."""
        for tensor in self.learned.values():
            tensor.grad = None
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        reached = {name: (t, t.grad) for name, t in self.learned.items() if t.grad is not None}
        moments = [[self.moments[f"{kind}.{name}"] for name in reached] for kind in ("first", "second", "count")]
        with torch.no_grad():
            adamw(
                [tensor for tensor, _ in reached.values()],
                [gradient for _, gradient in reached.values()],
                exp_avgs=moments[0],
                exp_avg_sqs=moments[1],
                max_exp_avg_sqs=[],
                state_steps=moments[2],
                foreach=True,
                amsgrad=False,
                beta1=self.BETAS[0],
                beta2=self.BETAS[1],
                lr=self.recipe.learning_rate * one_cycle(self.done, self.steps),
                weight_decay=self.recipe.weight_decay,
                eps=self.EPSILON,
                maximize=False,
            )
        self.done += 1

    def go_on(self, done: int, moments: dict[str, Tensor]) -> None:
        """Remember steps that another took."""
        self.done, self.moments = done, moments


class Training:
    """One network's training, which can stop after any step and go on elsewhere, to the same bytes.

    Args:
        network: its shape.
        part: ``uint8`` pixels (n, c, h, w) and labels (n,), or soft labels, which are not smoothed further.
        statistics: how pixels are normalised and which mirror images are allowed.
        recipe: the schedule.
        key: parameters, order of images and augmentation follow from it.
        device: where; the CPU if not given. What is random is drawn on the CPU, alike for every device.
        begun: what :attr:`stopped` was of a training that took the first steps; new parameters if empty.
    """

    def __init__(
        self,
        network: Network,
        part: Part,
        statistics: Statistics,
        recipe: Recipe,
        key: Key,
        device: torch.device | None = None,
        begun: dict[str, Tensor] | None = None,
    ) -> None:
        self.network, self.statistics, self.recipe, self.key = network, statistics, recipe, key
        self.device = device or torch.device("cpu")
        soft = part.soft_labels is not None
        self.labels = torch.from_numpy(part.labels if part.soft_labels is None else part.soft_labels).to(self.device)
        self.smoothing = 0.0 if soft else recipe.label_smoothing
        self.pixels = Pixels(part.pixels, self.device)
        batch = min(recipe.batch, len(part))
        self.steps, self.at_once = steps_for(recipe, len(part)), at_once(network, batch)
        # Copies, which are aligned like what was just computed, and which the one who stopped does not see change.
        known = {name: tensor.clone() for name, tensor in (begun or {}).items()}
        new = _below("parameters", known) or network.parameters(key.child("parameters"))
        self.parameters = {name: tensor.to(self.device) for name, tensor in new.items()}
        fixed = network.buffers
        learned = {name: t.requires_grad_(True) for name, t in self.parameters.items() if name not in fixed}
        self.descent, self.order = Descent(learned, recipe, self.steps), Order(len(part), batch, key)
        if known:
            moments = {
                n: t if n.startswith("count.") else t.to(self.device) for n, t in _below("moments", known).items()
            }
            self.descent.go_on(int(known["done"]), moments)
            for _ in range(self.descent.done):
                self.order.next()

    def run(self, until: int | None = None, after_step: AfterStep | None = None) -> Parameters:
        """Take the steps up to that one, or all of them.

        Args:
            until: number of the last step, counted from 1; beyond the recipe's there are none.
            after_step: called with the number of steps done and the parameters.

        Returns:
            The parameters after the last step.
        """
        recipe, statistics = self.recipe, self.statistics
        for step in range(self.descent.done, self.steps if until is None else min(until, self.steps)):
            rows = self.order.next()
            x = normalise(self.pixels[rows], statistics.mean, statistics.std)
            if recipe.augment:
                x = for_training(x, self.key.child("augment", step).generator(), statistics.flips)
            self.descent.step(self._losses(x, self.labels[rows]))
            if after_step is not None:
                after_step(step + 1, self.parameters)
        return {name: tensor.detach() for name, tensor in self.parameters.items()}

    @property
    def stopped(self) -> dict[str, Tensor]:
        """All that another training needs to go on from here."""
        parameters = {f"parameters.{name}": tensor.detach().clone() for name, tensor in self.parameters.items()}
        moments = {f"moments.{name}": tensor.clone() for name, tensor in self.descent.moments.items()}
        return {"done": torch.tensor(self.descent.done), **parameters, **moments}

    def _losses(self, x: Tensor, wanted: Tensor) -> Iterator[Tensor]:
        for own, labels_of_own in zip(x.split(self.at_once), wanted.split(self.at_once), strict=True):
            with precision_of(self.recipe, self.device):
                scores = self.network.logits(self.parameters, own, training=True)
            share = len(own) / len(x)
            yield share * functional.cross_entropy(scores.float(), labels_of_own, label_smoothing=self.smoothing)


def _below(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}


def train(
    network: Network,
    part: Part,
    statistics: Statistics,
    recipe: Recipe,
    key: Key,
    after_step: AfterStep | None = None,
    device: torch.device | None = None,
) -> Parameters:
    """Train a network from new parameters to the end; arguments as for :class:`Training` and :meth:`Training.run`."""
    return Training(network, part, statistics, recipe, key, device).run(after_step=after_step)


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
