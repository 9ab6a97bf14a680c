"""The contract of a distillation method, and the registry that finds methods.

A method is one file with one class: its hyperparameters are fields with unit and range, and
up to three hooks say what it does. The loop, checkpoints, resuming, configuration checking,
``medistill methods``, the citation on the card and the conformance tests follow from it.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from medistill.config import Settings, build
from medistill.distil.problem import Problem
from medistill.errors import ConfigError, nearest
from medistill.keys import Key
from medistill.types import Json

IMAGE_COPIES = 8
"""Of the images that are made, float32, at once: drawn, decoded, changed, with gradients, stored (measured)."""


@dataclass(frozen=True)
class MethodInfo:
    """What people need to know before they choose or cite a method.

    Args:
        name: as on the command line.
        title: in words.
        version: raised whenever the same settings would give other images, but for rounding.
        kind: "distillation" makes new images, "coreset" chooses real ones.
        cost: "seconds", "minutes" or "hours", for ten images per class at 28×28 on two cores.
        bibtex: the paper.
        learns_labels: whether labels are learned too.
        joint: whether the loss is of all classes together, so that they cannot be divided.
    """

    name: str
    title: str
    version: int
    kind: Literal["distillation", "coreset"]
    cost: Literal["seconds", "minutes", "hours"]
    bibtex: str
    learns_labels: bool = False
    joint: bool = False

    @property
    def contains_real_images(self) -> bool:
        """A coreset's images are real patient images."""
        return self.kind == "coreset"


@dataclass
class State:
    """All that changes while distilling; written whole into a checkpoint.

    Args:
        images: (n, c, h, w) normalised float32, sorted by class; hooks are given and give them at the
            size that networks see, the loop keeps them at the size in which they are stored.
        labels: (n,) class numbers.
        label_scores: (n, classes), whose softmax are the labels that are learned; None where each image
            keeps its class.
        memory: anything else a method keeps between steps, as plain tensors.
        step: steps done.
    """

    images: Tensor
    labels: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    label_scores: Tensor | None = None

    def to(self, device: torch.device | str) -> State:
        """The state with what is computed with on a device; flags, counters and single numbers stay on the CPU,
        where Python asks for them.
        """
        memory = {n: t.to(device if t.is_floating_point() and t.ndim else "cpu") for n, t in self.memory.items()}
        scores = None if self.label_scores is None else self.label_scores.to(device)
        return State(self.images.to(device), self.labels.to(device), memory, self.step, scores)


class Method(Settings, ABC):
    """Base of all methods. Subclass, add fields, set ``info``, override the hooks, register.

    The images are learned by gradient descent on ``loss``, ``iterations`` times: with momentum, or by Adam
    (Kingma, Ba, ICLR 2015), whose steps do not depend on the loss's scale.
    """

    info: ClassVar[MethodInfo]

    iterations: int = Field(0, ge=0, le=10_000_000, description="steps on the images")
    optimiser: Literal["sgd", "adam"] = Field("sgd", description="of the images")
    learning_rate: float = Field(1.0, gt=0, le=1e6, description="of the images, in normalised units")
    momentum: float = Field(0.5, ge=0, lt=1, description="of the images")

    def steps(self, problem: Problem) -> int:
        """Steps on the images in all; by default ``iterations``."""
        return self.iterations

    def image_learning_rate(self, problem: Problem) -> float:
        """Learning rate of the images; by default ``learning_rate``."""
        return self.learning_rate

    def label_rate(self) -> float:
        """Learning rate of the labels' scores, for methods that learn labels."""
        return 0.0

    def memory_mb(self, problem: Problem, classes: int) -> float:
        """Estimated megabytes for the losses of that many classes in one backward pass, beside program and data."""
        return IMAGE_COPIES * self.image_mb(problem)

    def image_mb(self, problem: Problem) -> float:
        """Megabytes of the images that are made, float32, as networks see them."""
        return 4e-6 * len(problem.labels) * math.prod(problem.shape)

    def setup(self, problem: Problem, key: Key) -> State:
        """The state before the first step; by default random real images."""
        return State(problem.random_images(key.child("start")), problem.labels)

    def preparations(self, problem: Problem) -> int:
        """How many pieces of work :meth:`prepare` has; 0 where there is nothing to prepare."""
        return 0

    def prepare(self, problem: Problem, key: Key, advance: Callable[[float], None]) -> None:
        """Do once what every step needs and a cache keeps; also called when a run is resumed.

        Tell ``advance`` of each piece. A step that finds a piece missing must be able to make it.
        """

    def loss(self, state: State, problem: Problem, classes: Sequence[int], key: Key) -> Tensor:
        """The loss of some classes at step ``state.step``, a scalar with a gradient to ``state.images``.

        The sum over classes must be the same however they are divided among calls, so draw
        from ``key`` by step and class. The same call must give the same result again.
        """
        raise TypeError(f"{type(self).__name__} takes steps but has no loss")

    def after_update(self, state: State, problem: Problem, key: Key) -> None:
        """Called after each step, for what else a method updates."""

    @property
    def starts_from_real_images(self) -> bool:
        """Whether the first images are real ones, from which traces may remain."""
        return True

    def for_this_machine(self) -> Self:
        """The same method with what was left to the machine decided, so that it can be recorded."""
        return self

    def configuration(self) -> Json:
        """Name, version and hyperparameters: what identifies the method in a run."""
        return {"name": self.info.name, "version": self.info.version, **self.model_dump(mode="json")}


class Coreset(Method):
    """A method that chooses real images; its result contains patient images."""

    iterations: int = Field(0, ge=0, le=0, description="a coreset takes no step")

    def setup(self, problem: Problem, key: Key) -> State:
        chosen = [
            problem.of_class(label, self.choose(problem, label, count, key.child("class", label)))
            for label, count in enumerate(problem.counts)
        ]
        return State(torch.cat(chosen), problem.labels)

    def choose(self, problem: Problem, label: int, count: int, key: Key) -> Tensor:
        """Rows within the class, ``count`` different ones, (count,) integers."""
        raise TypeError(f"{type(self).__name__} chooses nothing")


_REGISTRY: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method known under ``info.name``."""
    known = _REGISTRY.get(method.info.name)
    if known is not None and (known.__module__, known.__qualname__) != (
        method.__module__,
        method.__qualname__,
    ):
        raise ConfigError(f"method '{method.info.name}' exists already", where=method.__module__)
    _REGISTRY[method.info.name] = method
    return method


@functools.cache
def _discover() -> None:
    import medistill.distil.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for point in entry_points(group="medistill.methods"):
        point.load()


def methods() -> dict[str, type[Method]]:
    """Every method by name: ours, and those of installed packages (entry point ``medistill.methods``)."""
    _discover()
    return dict(sorted(_REGISTRY.items()))


def make_method(settings: dict[str, Any]) -> Method:
    """A method from its name and hyperparameters.

    Raises:
        ConfigError: unknown name or setting (with the nearest spelling), or out of range.
    """
    values = {k: v for k, v in settings.items() if k not in ("name", "version")}
    name = str(settings.get("name", ""))
    if name not in methods():
        raise ConfigError(f"unknown method '{name}'", where="--method", remedy=nearest(name, methods()))
    return build(methods()[name], values, "method")
