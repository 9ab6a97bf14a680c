"""The contract of a distillation method, and the registry that finds methods.

A method is one file with one class: its hyperparameters are fields with unit and range, and
a few hooks say what it does. The loop, checkpoints, resuming, configuration checking,
``medistill methods``, the citation on the card and the conformance tests follow from it.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medistill.aliases import Json
from medistill.config import Settings, build
from medistill.distil.optimiser import Optimiser
from medistill.distil.private_images import PrivateRealImages, Release
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Advance, Batch, Query, RealImages
from medistill.errors import ConfigError, nearest
from medistill.keys import Key
from medistill.parallel import PIECE
from medistill.registry import Registry
from medistill.tasks.task import Task

IMAGE_COPIES = 8
"""Of the synthetic images, float32, at once: drawn, decoded, augmented, with gradients, stored (measured)."""

IMAGES, LABELS = "images", "labels"
"""Names of what the loop learns."""

Observed = Mapping[str, Tensor]
"""What real images answered for one step, by name."""


@dataclass(frozen=True)
class MethodInfo:
    """What people need to know before they choose or cite a method.

    Args:
        name: as on the command line.
        title: in words.
        version: raised whenever the same settings would give other images, but for rounding.
        kind: "distillation" makes synthetic images, "coreset" chooses real ones.
        cost: "seconds", "minutes" or "hours", for ten images per class at 28×28 on two cores.
        bibtex: the paper.
        queries: what it asks real images, whatever its settings; see :attr:`Method.queries`.
        learns_labels: whether labels are learned too.
        couples_classes: whether the loss is of all strata together, so that they cannot be divided.
        tasks: kinds of tasks that it is made for; all, if None.
        private: whether it can ask once, with noise, for all that it needs; see :meth:`Method.release`.
        dimensions: of images that it is made for.
    """

    name: str
    title: str
    version: int
    kind: Literal["distillation", "coreset"]
    cost: Literal["seconds", "minutes", "hours"]
    bibtex: str
    queries: tuple[Query, ...] = ()
    learns_labels: bool = False
    couples_classes: bool = False
    tasks: tuple[str, ...] | None = None
    private: bool = False
    dimensions: tuple[int, ...] = (2, 3)

    @property
    def contains_real_images(self) -> bool:
        """A coreset's images are real patient images."""
        return self.kind == "coreset"

    def refusal(self, task: Task, dimensions: int) -> str | None:
        """Why the method cannot be used for such data; None where it can."""
        if self.tasks is not None and task.kind not in self.tasks:
            return f"{self.name} is not made for a {task.title}"
        if dimensions not in self.dimensions:
            return f"{self.name} is not made for images of {dimensions} dimensions"
        return None


@dataclass
class State:
    """All that changes while distilling; written whole into a checkpoint.

    Args:
        images: (n, c, *spatial) normalised float32, sorted by stratum; hooks are given and give them at the
            size that networks see, the loop keeps them at the size in which they are stored.
        targets: (n, outputs) ``uint8``, what each image stands for.
        label_logits: (n, outputs), whose probabilities are the labels that are learned; None where each image
            keeps its targets.
        buffers: anything else a method or optimiser keeps between steps, as plain tensors.
        step: steps done.
    """

    images: Tensor
    targets: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    label_logits: Tensor | None = None

    def clone(self) -> State:
        """The same in memory of its own, so that steps from it leave this one as it is."""
        buffers = {name: tensor.clone() for name, tensor in self.buffers.items()}
        logits = None if self.label_logits is None else self.label_logits.clone()
        return State(self.images.clone(), self.targets.clone(), buffers, self.step, logits)

    def to(self, device: torch.device | str) -> State:
        """The state with what is computed with on a device; flags, counters and single numbers stay on the CPU,
        where Python asks for them.
        """
        buffers = {n: t.to(device if t.is_floating_point() and t.ndim else "cpu") for n, t in self.buffers.items()}
        logits = None if self.label_logits is None else self.label_logits.to(device)
        return State(self.images.to(device), self.targets.to(device), buffers, self.step, logits)


@dataclass(frozen=True)
class Gradients:
    """What one step goes by.

    Args:
        loss: a scalar.
        images: gradient of the loss by the images as networks see them; None where it does not depend on them.
        labels: by the label logits, where they are learned.
        extra: further gradients that :meth:`Method.after_update` is given, by name.
    """

    loss: Tensor
    images: Tensor | None
    labels: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Method(Settings, ABC):
    """Base of all methods. Subclass, add fields, set ``info``, override the hooks, register.

    In every step a method first observes what it needs of the real images, then its loss, a pure function of the
    synthetic images and what was observed, is differentiated, then the optimiser moves images and labels.
    """

    info: ClassVar[MethodInfo]

    # Before the first step

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        """The state before the first step; by default noise."""
        return State(problem.noise(key.child("start")), problem.targets)

    def release(
        self, state: State, problem: DistillationProblem, images: PrivateRealImages, key: Key, advance: Advance
    ) -> Release:
        """Ask private real images, once, for all that the steps need, and keep it in ``state.buffers``; called after
        :meth:`setup`, and not again where a run goes on.

        The guarantee holds where what an image contributes depends on that image alone (no statistics of a batch),
        and ``clip`` on no real image; nothing may keep the images that it is shown. Under ``means``, ``counts`` and
        ``clip`` the buffers say what was released.

        Args:
            state, problem, key: as for :meth:`observe`.
            images: what is asked.
            advance: told how many images were seen.
        """
        raise TypeError(f"{type(self).__name__} cannot be private")

    def preparations(self, problem: DistillationProblem) -> int:
        """How many pieces of work :meth:`prepare` has; 0 where there is nothing to prepare."""
        return 0

    def prepare(self, problem: DistillationProblem, key: Key, advance: Callable[[float], None]) -> None:
        """Do once what every step needs and a cache keeps; also called when a run is resumed.

        Tell ``advance`` of each piece. A step that finds a piece missing must be able to make it.
        """

    # Every step

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """Ask the real images what this step needs; what later steps need too may be kept in ``state.buffers``."""
        return {}

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        """The loss of some strata at step ``state.step``, a scalar with a gradient to ``state.images``.

        A pure function: it changes nothing and asks no real image. The sum over strata must be the same however they
        are divided among calls, which several threads make at once, so draw from ``key`` by step and stratum. The
        same call must give the same result again.
        """
        raise TypeError(f"{type(self).__name__} takes steps but has no loss")

    def gradients(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Gradients:
        """The loss and its gradients; by default of :meth:`loss`, by automatic differentiation."""
        learned = [t for t in (state.images, state.label_logits) if t is not None]
        for tensor in learned:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            loss = self.loss(state, observed, problem, strata, key)
        # Networks' parameters may have gradients within a loss, but nobody asks for its gradient by them.
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        for tensor in learned:
            tensor.requires_grad_(False)
        return Gradients(loss.detach(), gradients[0], gradients[1] if len(gradients) > 1 else None)

    def after_update(
        self, state: State, problem: DistillationProblem, key: Key, gradients: Mapping[str, Tensor]
    ) -> None:
        """Called after each step, for what else a method updates, with the extra gradients summed over strata."""

    # What is known before anything is computed

    def steps(self, problem: DistillationProblem) -> int:
        """Steps on the images in all; none for methods that learn nothing."""
        return 0

    def kinds_of_steps(self, problem: DistillationProblem, done: int) -> Sequence[tuple[int, int]]:
        """Of the steps after so many: how many cost alike, and the number of one of these, for each kind of them.

        Each is measured once, in this order and after the first step that is left, to tell how long all will take.
        """
        return [(self.steps(problem) - done, done + 1)]

    def preparing_seconds(self, problem: DistillationProblem, key: Key) -> float:
        """How long :meth:`prepare` takes on this machine, about."""
        return 0.0

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        """What moves the images where nobody asks for something else."""
        return Optimiser()

    def label_rate(self) -> float:
        """Learning rate of the labels' logits, for methods that learn labels."""
        return 0.0

    def strata_per_piece(self, problem: DistillationProblem) -> int:
        """Strata whose losses are worth a piece of work of its own; on a GPU all together.

        Pieces are computed side by side, so how many there are must not depend on the workers.
        """
        if problem.device.type != "cpu":
            return problem.strata
        return max(1, min(problem.strata, PIECE // max(problem.synthetic_per_stratum)))

    def side_by_side(self, problem: DistillationProblem, strata: int) -> int:
        """How many pieces of that many strata are computed at once."""
        pieces = -(-len(problem.present(range(problem.strata))) // strata)
        return max(1, min(problem.workers.number, pieces))

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        """Estimated megabytes for the losses of that many strata in one piece of work, as many pieces at once as the
        problem has workers, beside program and data.
        """
        return IMAGE_COPIES * self.image_mb(problem)

    def image_mb(self, problem: DistillationProblem) -> float:
        """Megabytes of the synthetic images, float32, as networks see them."""
        return 4e-6 * sum(problem.synthetic_per_stratum) * problem.channels * math.prod(problem.shape)

    @property
    def queries(self) -> tuple[Query, ...]:
        """What it asks real images under its settings; nothing else is answered."""
        return self.info.queries

    def real(self, problem: DistillationProblem) -> RealImages:
        """The real images, which answer :attr:`queries`."""
        return problem.real.queried_by(self.queries)

    @property
    def starts_from_real_images(self) -> bool:
        """Whether the first images are real ones, which the package may still show."""
        return False

    @property
    def start_name(self) -> str:
        """What the first images are, for the manifest."""
        return "real" if self.starts_from_real_images else "noise"

    def for_this_machine(self) -> Self:
        """The same method with what was left to the machine decided, so that it can be recorded."""
        return self

    def configuration(self) -> Json:
        """Name, version and hyperparameters: what identifies the method in a run."""
        return {"name": self.info.name, "version": self.info.version, **self.model_dump(mode="json")}


class LearnedMethod(Method):
    """Base of methods that learn images in so many steps."""

    iterations: int | None = Field(None, ge=1, le=10_000_000, description="steps on the images")

    def steps(self, problem: DistillationProblem) -> int:
        return self.iterations or 0


class Coreset(Method):
    """A method that chooses real images; its result contains patient images."""

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        drawn = different_images(
            problem,
            self.real(problem),
            lambda stratum, count: self.choose(problem, stratum, count, key.child("class", stratum)),
        )
        return State(drawn.images, drawn.targets)

    @property
    def starts_from_real_images(self) -> bool:
        return True

    def choose(self, problem: DistillationProblem, stratum: int, count: int, key: Key) -> Tensor:
        """Places within the stratum, ``count`` different ones, the best first, (count,) integers."""
        raise TypeError(f"{type(self).__name__} chooses nothing")


def different_images(problem: DistillationProblem, real: RealImages, choose: Callable[[int, int], Tensor]) -> Batch:
    """Real images for every stratum, sorted by stratum. Where strata overlap, no image stands for two of them while
    others are left.

    Args:
        problem: how many of each.
        real: the images, which answer ``draw``.
        choose: from stratum and number to so many places within it, the best first.
    """
    taken = np.zeros(0, dtype=np.int64)
    drawn: dict[int, Batch] = {}
    for stratum in real.serving_order:
        if count := problem.synthetic_per_stratum[stratum]:
            used = real.places(stratum, taken)
            places = choose(stratum, min(count + len(used), problem.real_per_stratum[stratum])).cpu()
            again = torch.isin(places, used)
            answer = real.draw(stratum, torch.cat([places[~again], places[again]])[:count])
            taken, drawn[stratum] = np.concatenate([taken, answer.rows]), answer.value
    batches = [drawn[stratum] for stratum in sorted(drawn)]
    return Batch(torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches]))


_REGISTRY: Registry[type[Method]] = Registry("method", "medistill.distil.methods", "medistill.methods")


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method known under ``info.name``."""
    return _REGISTRY.add(method.info.name, method)


def methods() -> dict[str, type[Method]]:
    """Every method by name: ours, and those of installed packages (entry point ``medistill.methods``)."""
    return _REGISTRY.all()


MOVED = ("learning_rate", "momentum", "optimiser")
"""Settings that were a method's before the optimiser had its own."""


def make_method(settings: dict[str, Any]) -> Method:
    """A method from its name and hyperparameters.

    Raises:
        ConfigError: unknown name or setting (with the nearest spelling), or out of range.
    """
    values = {k: v for k, v in settings.items() if k not in ("name", "version")}
    name = str(settings.get("name", ""))
    if name not in methods():
        raise ConfigError(f"unknown method '{name}'", where="--method", remedy=nearest(name, methods()))
    for setting in MOVED:
        if setting in values and setting not in methods()[name].model_fields:
            now = "optimiser.name" if setting == "optimiser" else f"optimiser.{setting}"
            raise ConfigError(f"unknown setting 'method.{setting}'", remedy=f"the optimiser has it: {now}")
    return build(methods()[name], values, "method")
