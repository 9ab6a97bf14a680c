"""What takes a step down a gradient, apart from the methods: any learns by any."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from medistill.aliases import Json
from medistill.config import OptimiserConfig

DECAY = 0.999
"""Of Adam's mean of squared gradients."""

EPSILON = 1e-8

RATES = {"sgd": 1.0, "adam": 0.05}
"""Learning rates of images where a method's own is for the other kind; Adam's steps are as long as its rate."""


@dataclass(frozen=True)
class Optimiser:
    """Gradient descent on images, and on labels where they are learned.

    Args:
        name: "sgd" with momentum, or "adam" (Kingma, Ba, ICLR 2015), whose steps do not depend on the loss's scale.
        learning_rate: of the images, in normalised units.
        momentum: of both.
        schedule: "constant", or "cosine": from the learning rate down to 0 over the steps, along half a cosine
            (Loshchilov, Hutter, "SGDR", ICLR 2017, without restarts).
    """

    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.5
    schedule: Literal["constant", "cosine"] = "constant"

    def configured(self, asked: OptimiserConfig) -> Optimiser:
        """This one, with what somebody asks for instead; another kind comes with its own learning rate."""
        given = {name: value for name, value in asked.model_dump().items() if value is not None}
        settings = self.as_json()
        if given.get("name", self.name) != self.name:
            settings["learning_rate"] = RATES[given["name"]]
        return Optimiser(**{**settings, **given})

    def as_json(self) -> Json:
        """Its settings."""
        return asdict(self)

    def decay(self, done: float) -> float:
        """What learning rates are multiplied by after that share of the steps, from 0 to 1."""
        return 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * done)) / 2

    def buffers(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        """What it keeps between steps, at rest, by name."""
        kinds = ("momentum", "square") if self.name == "adam" else ("momentum",)
        return {f"{kind}.{name}": torch.zeros_like(tensor) for name, tensor in learned.items() for kind in kinds}

    def direction(self, buffers: dict[str, Tensor], name: str, gradient: Tensor, done: int) -> Tensor:
        """Where it goes, before it is multiplied by the learning rate; its buffers are brought up to date.

        Args:
            buffers: from :meth:`buffers`.
            name: of what is learned.
            gradient: of the loss by it.
            done: steps done before this one.
        """
        momentum = buffers[f"momentum.{name}"]
        if self.name == "sgd":
            return momentum.mul_(self.momentum).add_(gradient)
        momentum.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
        square = buffers[f"square.{name}"].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
        taken = done + 1
        mean, root = momentum / (1 - self.momentum**taken), (square / (1 - DECAY**taken)).sqrt()
        return mean / (root + EPSILON)
