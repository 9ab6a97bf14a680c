"""The one recipe that trains a network, for every arm of every comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from medistill.aliases import Pixels, Probabilities
from medistill.augment import for_training
from medistill.config import Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.keys import Key
from medistill.nets.bank import PixelBank
from medistill.nets.convnet import Parameters
from medistill.nets.zoo import Network
from medistill.parallel import SpareCores, go_on
from medistill.tasks.task import Task

AfterStep = Callable[[int, Parameters], None]


def steps_for(recipe: Recipe, images: int) -> int:
    """Gradient steps for that many training images: the recipe's epochs, within its bounds.

    The lower bound rises with the logarithm of the number of images, because a larger set
    holds more to learn than few images do, but not in proportion.
    """
    batches = images / min(recipe.batch_size, images)
    least = recipe.min_steps + recipe.steps_per_doubling * math.log2(batches)
    return int(min(recipe.max_steps, max(least, recipe.epochs * batches)))


def images_seen(recipe: Recipe, images: int) -> int:
    """Images that go through a network while it is trained on so many."""
    return steps_for(recipe, images) * min(recipe.batch_size, images)


def one_cycle(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear rise over the first fifth, then half a cosine to zero.

    Smith, Topin, "Super-Convergence", 2018, without the cycle of the momentum.
    """
    rise = max(1, round(steps / 5))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class BatchSampler:
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


PREDICTED_AT_ONCE = 64
"""Images that a network is asked about at once, small enough for the cache."""


def micro_batch_size(network: Network, images: int) -> int:
    """How many of so many images go through a network together, in training and when it is asked."""
    image_mb = network.activation_mb
    return images if image_mb is None else max(1, min(images, int(AT_ONCE_MB / image_mb)))


class AdamW:
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

    def load_state(self, done: int, moments: dict[str, Tensor]) -> None:
        """Remember steps that another took."""
        self.done, self.moments = done, moments


class Training:
    """One network's training, which can stop after any step and go on elsewhere, to the same bytes.

    Args:
        network: its shape.
        data: pixels and targets, or soft labels, which are not smoothed further.
        task: what the targets mean; the loss follows from it.
        normalisation: how pixels are normalised and which mirror images are allowed.
        recipe: the schedule.
        key: parameters, order of images and augmentation follow from it.
        device: where; the CPU if not given. What is random is drawn on the CPU, alike for every device.
        begun: what :attr:`stopped` was of a training that took the first steps; new parameters if empty.
    """

    def __init__(
        self,
        network: Network,
        data: TensorSplit,
        task: Task,
        normalisation: Normalisation,
        recipe: Recipe,
        key: Key,
        device: torch.device | None = None,
        begun: dict[str, Tensor] | None = None,
    ) -> None:
        self.network, self.task, self.normalisation = network, task, normalisation
        self.recipe, self.key = recipe, key
        self.device = device or torch.device("cpu")
        self.targets = training_targets(data).to(self.device)
        self.pixels = PixelBank(data.pixels, self.device)
        batch = min(recipe.batch_size, len(data))
        self.steps, self.micro_batch_size = steps_for(recipe, len(data)), micro_batch_size(network, batch)
        # Copies, which are aligned like what was just computed, and which the one who stopped does not see change.
        resumed = {name: tensor.clone() for name, tensor in (begun or {}).items()}
        new = _below("parameters", resumed) or network.parameters(key.child("parameters"))
        self.parameters = {name: tensor.to(self.device) for name, tensor in new.items()}
        fixed = network.buffers
        learned = {name: t.requires_grad_(True) for name, t in self.parameters.items() if name not in fixed}
        self.optimiser, self.sampler = AdamW(learned, recipe, self.steps), BatchSampler(len(data), batch, key)
        if resumed:
            moments = {
                n: t if n.startswith("count.") else t.to(self.device) for n, t in _below("moments", resumed).items()
            }
            self.optimiser.load_state(int(resumed["done"]), moments)
            for _ in range(self.optimiser.done):
                self.sampler.next()

    def run(self, until: int | None = None, after_step: AfterStep | None = None) -> Parameters:
        """Take the steps up to that one, or all of them.

        Args:
            until: number of the last step, counted from 1; beyond the recipe's there are none.
            after_step: called with the number of steps done and the parameters.

        Returns:
            The parameters after the last step.
        """
        spare = SpareCores()
        for step in range(self.optimiser.done, self.steps if until is None else min(until, self.steps)):
            go_on()
            with spare.step():
                rows = self.sampler.next()
                x = self.normalisation.normalise(self.pixels[rows])
                if self.recipe.augment:
                    x = for_training(x, self.key.child("augment", step).generator(), self.normalisation.flips)
                self.optimiser.step(self._losses(x, self.targets[rows]))
            if after_step is not None:
                after_step(step + 1, self.parameters)
        return {name: tensor.detach() for name, tensor in self.parameters.items()}

    @property
    def stopped(self) -> dict[str, Tensor]:
        """All that another training needs to go on from here."""
        parameters = {f"parameters.{name}": tensor.detach().clone() for name, tensor in self.parameters.items()}
        moments = {f"moments.{name}": tensor.clone() for name, tensor in self.optimiser.moments.items()}
        return {"done": torch.tensor(self.optimiser.done), **parameters, **moments}

    def _losses(self, x: Tensor, targets: Tensor) -> Iterator[Tensor]:
        size = self.micro_batch_size
        for part, wanted in zip(x.split(size), targets.split(size), strict=True):
            with precision_of(self.recipe, self.device):
                logits = self.network.logits(self.parameters, part, training=True)
            yield len(part) / len(x) * self.task.loss(logits.float(), wanted, self.recipe.label_smoothing)


def training_targets(data: TensorSplit) -> Tensor:
    """What a network is trained towards: soft labels (floats) where there are any, else targets (integers)."""
    return torch.from_numpy(data.targets if data.soft_labels is None else data.soft_labels)


def _below(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}


def train_network(
    network: Network,
    data: TensorSplit,
    task: Task,
    normalisation: Normalisation,
    recipe: Recipe,
    key: Key,
    after_step: AfterStep | None = None,
    device: torch.device | None = None,
) -> Parameters:
    """Train a network from new parameters to the end; arguments as for :class:`Training` and :meth:`Training.run`."""
    return Training(network, data, task, normalisation, recipe, key, device).run(after_step=after_step)


def predict_probabilities(
    network: Network, parameters: Parameters, pixels: Pixels, task: Task, normalisation: Normalisation
) -> Probabilities:
    """Probabilities (n, outputs) of ``uint8`` pixels (n, c, *spatial), computed where the parameters are.

    Where mirror images keep their class, the mean over an image and its mirror image along the last axis.
    """
    mirrored = normalisation.flips != "none"
    bank = PixelBank(pixels, next(iter(parameters.values())).device)
    with torch.inference_mode():
        chunks, size = [], micro_batch_size(network, PREDICTED_AT_ONCE)
        for start in range(0, len(pixels), size):
            x = normalisation.normalise(bank[start : start + size])
            views = [x, x.flip(x.ndim - 1)] if mirrored else [x]
            probabilities = [task.probabilities(network.logits(parameters, view).double()) for view in views]
            chunks.append(sum(probabilities[1:], probabilities[0]) / len(probabilities))
    return torch.cat(chunks).cpu().numpy()
