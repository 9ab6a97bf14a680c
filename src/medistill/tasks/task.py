"""The contract of a task, and the registry that finds tasks.

A task is one file with one class. From it follow the loss, probabilities, metrics, the baseline, soft labels, and
*strata*: the groups of images that methods match and splits keep in proportion. Targets have one form everywhere,
(n, outputs) of zeros and ones: one-hot where an image has one class, several ones where it has several findings.
Nothing outside ``medistill.tasks`` computes a loss, a softmax or a maximum of labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json, Probabilities, SoftLabels, Targets
from medistill.errors import ConfigError, DataError, nearest
from medistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]

BLOCK = 2**22
"""Weights handled at once, so that a large test set needs no gigabytes."""


@dataclass(frozen=True)
class Metric:
    """A figure that arms are compared in.

    Args:
        name: in JSON.
        title: in words.
        short: where there is little room.
        bounds: the least and the greatest value.
        higher_is_better: False for errors.
    """

    name: str
    title: str
    short: str
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True


@dataclass(frozen=True)
class Task(ABC):
    """Base of all tasks. Subclass, set the class variables, implement what is abstract, register.

    Args:
        class_names: of the outputs: classes, grades from the least to the greatest, or findings.

    Attributes:
        kind: short name, as in settings and manifests.
        title: in words.
        noun, plural: what an output is called.
        metrics: in the order of tables.
        primary: name of the metric that verdicts are about.
        exclusive: whether an image has exactly one of the outputs.
        ordered: whether the outputs have an order.
    """

    class_names: tuple[str, ...]

    kind: ClassVar[str]
    title: ClassVar[str]
    noun: ClassVar[str] = "class"
    plural: ClassVar[str] = "classes"
    metrics: ClassVar[tuple[Metric, ...]]
    primary: ClassVar[str]
    exclusive: ClassVar[bool] = True
    ordered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for an image."""
        return len(self.class_names)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of tables."""
        return tuple(metric.name for metric in self.metrics)

    def metric(self, name: str) -> Metric:
        """The metric of that name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def renamed(self, class_names: tuple[str, ...]) -> Task:
        """The same kind of task with other names of its outputs, perhaps more or fewer."""
        return type(self)(class_names)

    # Labels

    @abstractmethod
    def targets(self, labels: npt.NDArray[Any]) -> Targets:
        """Labels as a source gives them as targets (n, outputs).

        Raises:
            DataError: labels of another kind, or out of range.
        """

    def labels(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Targets as labels: class numbers (n,) where outputs exclude each other, else (n, outputs)."""
        return np.asarray(targets.argmax(axis=1) if self.exclusive else targets).astype(np.int64)

    def require(self, targets: Targets, where: str) -> None:
        """Refuse targets that the task cannot have, as one-hot labels with two ones where classes exclude each other.

        Raises:
            DataError: with the first such row.
        """
        if targets.shape[1:] != (self.outputs,):
            raise DataError(f"have shape {targets.shape}", where=where, allowed=f"(images, {self.outputs})")

    # Strata

    @property
    def strata(self) -> tuple[str, ...]:
        """Names of the groups of images that methods match and splits keep in proportion; by default the outputs."""
        return self.class_names

    def membership(self, targets: Targets) -> npt.NDArray[np.bool_]:
        """Which strata each image belongs to, (n, strata); by default those of its outputs."""
        return np.asarray(targets > 0)

    def representatives(self) -> Targets:
        """Targets of an image that stands for each stratum, (strata, outputs)."""
        return np.eye(self.outputs, dtype=np.uint8)

    def counts(self, targets: Targets) -> list[int]:
        """Images in each stratum."""
        return [int(n) for n in self.membership(targets).sum(axis=0)]

    # Training

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean loss over images, a scalar.

        Args:
            logits: (n, outputs).
            targets: (n, outputs); integers are hard labels, floats are probabilities, which are not smoothed.
            smoothing: share of a hard label that is spread.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (n, outputs) from logits."""

    @abstractmethod
    def logits(self, certainty: float, targets: Tensor) -> Tensor:
        """Logits whose probabilities give the targets that certainty: where learning of labels starts."""

    # Soft labels

    @abstractmethod
    def sharpened(self, probabilities: Probabilities, temperature: float) -> Probabilities:
        """Probabilities at another temperature; above 1 they are softer."""

    @abstractmethod
    def shift(self, probabilities: Probabilities, targets: Targets) -> Array:
        """What added to the logits makes a network prefer no output, (outputs,)."""

    @abstractmethod
    def shifted(self, soft: SoftLabels, shift: Array) -> SoftLabels:
        """Soft labels with that added to their logits."""

    @abstractmethod
    def restored(self, stored: npt.NDArray[np.float16]) -> SoftLabels:
        """Soft labels as stored in half precision, to train on.

        Raises:
            ValueError: they are no probabilities of this task.
        """

    # Measuring

    @abstractmethod
    def decisions(self, probabilities: Probabilities) -> Targets:
        """What a network that says so decides on, (n, outputs)."""

    def likelihood(self, probabilities: Probabilities, targets: Targets) -> Array:
        """What a network gives the whole answer of each image, (n,): of several findings the product over them."""
        if self.exclusive:
            return np.asarray((probabilities * (targets > 0)).sum(axis=1), dtype=np.float64)
        return np.asarray(np.where(targets > 0, probabilities, 1 - probabilities).prod(axis=1), dtype=np.float64)

    @abstractmethod
    def evaluate_block(self, probabilities: Probabilities, targets: Targets, weights: Array) -> dict[str, Array]:
        """Each metric for each row of weights (samples, n), as (samples,); NaN where it is not defined."""

    def evaluate(
        self, probabilities: Probabilities, targets: Targets, weights: npt.NDArray[np.generic] | None = None
    ) -> dict[str, Array]:
        """Each metric for each row of weights, as (samples,).

        Args:
            probabilities: (n, outputs).
            targets: (n, outputs).
            weights: (samples, n), how often each image counts; one row of ones if None.
        """
        given = np.ones((1, len(targets))) if weights is None else weights
        rows = max(1, BLOCK // max(1, len(targets)))
        blocks = [
            self.evaluate_block(probabilities, targets, given[i : i + rows].astype(np.float64))
            for i in range(0, len(given), rows)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in self.metric_names}

    def scores(self, probabilities: Probabilities, targets: Targets) -> dict[str, float]:
        """Each metric of one set of predictions."""
        return {name: float(value[0]) for name, value in self.evaluate(probabilities, targets).items()}

    @abstractmethod
    def constant(self, targets: Targets, possible: npt.NDArray[np.bool_]) -> Array:
        """The best answer without looking, (outputs,), after training targets; ``possible`` outputs are tested."""

    def majority_baseline(self, training: Targets, tested: Targets) -> dict[str, float]:
        """What always giving the most frequent training answer, of those tested, achieves; NaN where undefined."""
        answer = self.constant(training, np.asarray(tested.any(axis=0)))
        return self.scores(np.tile(answer, (len(tested), 1)), tested)

    @abstractmethod
    def details(self, runs: Sequence[Probabilities], targets: Targets) -> Json:
        """By output and beyond metrics, as means over runs.

        Returns:
            ``recall`` and, in ``by_class``, further figures, a list over outputs each, None where undefined;
            ``confusion`` (outputs, outputs) summed over runs, or None; ``calibration_error``.
        """


_REGISTRY: Registry[type[Task]] = Registry("task", "medistill.tasks", "medistill.tasks")


def register_task(task: type[Task]) -> type[Task]:
    """Class decorator: make a task known under its kind.

    Raises:
        ConfigError: another task has that kind.
    """
    return _REGISTRY.add(task.kind, task)


def tasks() -> dict[str, type[Task]]:
    """Every task by kind: ours, and those of installed packages (entry point ``medistill.tasks``)."""
    return _REGISTRY.all()


def make_task(kind: str, class_names: Sequence[str]) -> Task:
    """A task from its kind and the names of its outputs.

    Raises:
        ConfigError: unknown kind (with the nearest spelling), or one that these outputs cannot have.
    """
    if kind not in tasks():
        raise ConfigError(f"unknown task '{kind}'", where="--task", remedy=nearest(kind, tasks()))
    return tasks()[kind](tuple(class_names))


def numbered(kind: str, outputs: int) -> Task:
    """A task whose outputs are called by their numbers, for where names do not matter."""
    return make_task(kind, [str(i) for i in range(outputs)])


def exclusive_kind(outputs: int) -> str:
    """The task of so many classes that exclude each other and have no order."""
    return "binary" if outputs == 2 else "multi-class"


def inferred_task(labels: npt.NDArray[Any], class_names: Sequence[str]) -> Task:
    """The task that labels have by themselves; an order of classes is never guessed.

    Args:
        labels: (n,) class numbers, or (n, k) findings.
        class_names: of classes or findings.
    """
    if labels.ndim == 2:
        return make_task("multi-label", class_names)
    return make_task(exclusive_kind(len(class_names)), class_names)


def retasked(task: Task, targets: dict[str, Targets], kind: str) -> Task:
    """The task of another kind for the same targets.

    Args:
        task: as read.
        targets: by split.
        kind: that somebody asks for.

    Raises:
        DataError: the targets cannot be of that kind.
        ConfigError: unknown kind.
    """
    wanted = make_task(kind, task.class_names)
    for split, of_split in targets.items():
        try:
            wanted.require(of_split, f"{split}_labels")
        except DataError as problem:
            raise DataError(f"the labels are no {wanted.title} ({problem})", where=f"--task {kind}") from problem
    return wanted
