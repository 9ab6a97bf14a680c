"""Matching training trajectories.

A student trained for a few steps on the synthetic images should arrive where an expert
trained on the real images arrives in a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medistill.augment import Augmentation
from medistill.distil.descent import loss_gradient
from medistill.distil.experts import ExpertSettings, expert_seconds, has_expert, trajectory, unflatten
from medistill.distil.method import Gradients, MethodInfo, Observed, State, register
from medistill.distil.networked import NetworkMethod
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.zoo import width_for
from medistill.parallel import PIECE, summed

MOMENTUM = 0.5
"""Of the student's step size."""

LARGEST_CHANGE = 0.1
"""Of the logarithm of the learned step size, in one step."""


@register
class MTT(NetworkMethod):
    """Matching training trajectories (Cazenavette et al., CVPR 2022), algorithm 1 and equation 3.

    The gradient through the student's steps is exact, but for rounding, and needs the memory of one step: the
    student's parameters are kept, and each step is done again on the way back. The step size
    is learned too; it is multiplied, never added to, so it cannot turn negative.
    """

    info = MethodInfo(
        name="mtt",
        title="Matching training trajectories",
        version=2,
        kind="distillation",
        cost="hours",
        bibtex=(
            "@inproceedings{cazenavette2022mtt, title={Dataset Distillation by Matching Training Trajectories}, "
            "author={Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and "
            "Zhu, Jun-Yan}, booktitle={CVPR}, year={2022}}"
        ),
        queries=("training",),
        couples_classes=True,
    )

    iterations: int = Field(5000, ge=1, le=10_000_000, description="steps on the images")
    experts: int = Field(100, ge=1, le=10_000, description="networks trained on the real images")
    expert_epochs: int = Field(50, ge=1, le=10_000, description="passes of an expert over the real images")
    expert_learning_rate: float = Field(0.01, gt=0, le=10, description="of an expert, plain gradient descent")
    expert_batch: int = Field(256, ge=1, le=65536, description="real images per step of an expert")
    latest_start: int = Field(25, ge=0, le=10_000, description="last epoch of an expert that a student starts from")
    span: int = Field(3, ge=1, le=10_000, description="epochs of the expert that a student should make good")
    student_steps: int = Field(20, ge=1, le=10_000, description="steps of a student on the synthetic images")
    student_batch: int = Field(256, ge=1, le=65536, description="synthetic images per step of a student, at most all")
    precision: Literal["float32"] = Field("float32", description="it is computed in no other")
    step_size: float = Field(0.01, gt=0, le=10, description="of the student, to begin with")
    step_size_learning_rate: float = Field(1e-5, ge=0, le=1, description="of the student's step size")

    def steps(self, problem: DistillationProblem) -> int:
        return self.iterations

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser(learning_rate=1000.0)

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        network = self.network(problem)
        batch = min(self.student_batch, sum(problem.synthetic_per_stratum))
        parameters = network.parameter_count * 4e-6
        on_cpu, seen = problem.device.type == "cpu", min(self.expert_batch, sum(problem.real_per_stratum))
        # The student's places, an expert in half and in single precision; one step's graph at a time.
        at_once = min(batch, problem.workers.number * PIECE) if on_cpu else batch
        student = parameters * (self.student_steps + 6 + self.expert_epochs) + 3 * at_once * network.activation_mb
        # An expert's step has gradients of all parameters too, and takes about a third more for an image (measured).
        # Those trained side by side take their images in parts, a single one's workers do.
        side = min(problem.workers.number, self.experts) if on_cpu else 1
        parts = min(seen, (problem.workers.number if side == 1 else 1) * PIECE) if on_cpu else seen
        expert = parameters * (6 + self.expert_epochs) + 1.35 * parts * network.activation_mb
        return max(student, side * (expert + seen * self.batch_mb(problem)))

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        zero = torch.zeros((), dtype=torch.float64)
        sizes = {"step_size": zero + self.step_size, "step_size_momentum": zero}
        return State(self.first_images(problem, key), problem.targets, sizes)

    def preparations(self, problem: DistillationProblem) -> int:
        return self.experts

    def prepare(self, problem: DistillationProblem, key: Key, advance: Callable[[float], None]) -> None:
        """Train the experts that the cache does not have."""
        for _ in problem.workers.map(lambda index: len(self._trajectory(problem, key, index)), range(self.experts)):
            advance(1)

    def preparing_seconds(self, problem: DistillationProblem, key: Key) -> float:
        """Of the experts that the cache does not have, from a step of one, which many take side by side."""
        missing = sum(not self._is_kept(problem, key, index) for index in range(self.experts))
        if not missing:
            return 0.0
        settings, own = self._expert(problem, key, 0)
        rounds = -(-missing // problem.workers.number)
        return expert_seconds(problem, self.real(problem), settings, own.child("pace")) * rounds

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """Where an expert was, and where it is some epochs later, (p,) each."""
        draw = key.child("step", state.step).numpy()
        path = self._trajectory(problem, key, int(draw.integers(self.experts)))
        span = min(self.span, self.expert_epochs)
        first = int(draw.integers(min(self.latest_start, self.expert_epochs - span) + 1))
        origin, goal = (path[i].to(state.images) for i in (first, first + span))
        return {"origin": origin, "goal": goal}

    def gradients(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Gradients:
        """The loss of equation 3, and its exact gradients by images and step size."""
        origin, goal = observed["origin"], observed["goal"]
        student = _Student(self, problem, state.targets, key.child("step", state.step))
        images, size = state.images.detach(), float(state.buffers["step_size"])
        places = [origin]
        for step in range(self.student_steps):
            places.append(places[-1] - size * student.gradient(places[-1], images, step))
        scale = (origin - goal).square().sum().clamp_min(1e-12)
        value = (places[-1] - goal).square().sum() / scale
        # Back through the steps, each done again: adjoint of the parameters, sums for images and step size.
        adjoint = 2 * (places[-1] - goal) / scale
        slope, size_slope = torch.zeros_like(images), torch.zeros((), dtype=torch.float64, device=images.device)
        for step in reversed(range(self.student_steps)):
            along, by_place, by_image = student.products(places[step], images, step, adjoint)
            slope -= size * by_image
            size_slope = size_slope - along.double()
            adjoint = adjoint - size * by_place
        return Gradients(value, slope, extra={"step_size": size_slope})

    def after_update(
        self, state: State, problem: DistillationProblem, key: Key, gradients: Mapping[str, Tensor]
    ) -> None:
        buffers, momentum = state.buffers, state.buffers["step_size_momentum"]
        buffers["step_size_momentum"] = MOMENTUM * momentum + gradients["step_size"].cpu()
        # To first order what subtracting does, but a positive step size stays positive. After an overshoot the
        # slope is so steep that one step would end at nothing, where the images have no slope any more.
        change = -self.step_size_learning_rate * buffers["step_size_momentum"] / buffers["step_size"]
        buffers["step_size"] = buffers["step_size"] * change.clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp()

    def _expert(self, problem: DistillationProblem, key: Key, index: int) -> tuple[ExpertSettings, Key]:
        width = width_for(problem.shape, self.filters)
        settings = ExpertSettings(
            self.expert_epochs, self.expert_learning_rate, self.expert_batch, width, self.depth, self.augment,
            self.stem,
        )  # fmt: skip
        return settings, Key(key.seed).child("expert", index)

    def _trajectory(self, problem: DistillationProblem, key: Key, index: int) -> Tensor:
        return trajectory(problem, self.real(problem), *self._expert(problem, key, index))

    def _is_kept(self, problem: DistillationProblem, key: Key, index: int) -> bool:
        return has_expert(problem, self.real(problem), *self._expert(problem, key, index))


class _Student:
    """A network's loss on a batch of synthetic images at each of its steps, and derivatives of it; workers compute
    them for parts of the batch.
    """

    def __init__(self, method: MTT, problem: DistillationProblem, targets: Tensor, key: Key) -> None:
        self.network = method.network(problem)
        self.like = problem.parameters(self.network, key)
        self.targets, self.key, self.method, self.problem = targets, key, method, problem

    def _rows(self, images: int, step: int) -> tuple[Tensor, Augmentation]:
        """Rows of a step's images, and what augments them."""
        here = self.key.child("student", step)
        rows = torch.randperm(images, generator=here.generator())[: self.method.student_batch]
        return rows, self.method.sample_augmentation(self.problem, here.child("augment"))

    def _loss(self, place: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return self.problem.task.loss(self.network.logits(unflatten(place, self.like), images), targets)

    def gradient(self, place: Tensor, images: Tensor, step: int) -> Tensor:
        """Of the loss by the parameters, (p,)."""
        rows, augment = self._rows(len(images), step)

        def loss(learned: Parameters, part: slice) -> Tensor:
            return self._loss(learned["place"], augment(images[rows[part]]), self.targets[rows[part]])

        return loss_gradient(self.problem, loss, {"place": place}, len(rows))["place"]

    def products(self, place: Tensor, images: Tensor, step: int, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient times a vector, and the derivatives of that by parameters and by images."""
        rows, augment = self._rows(len(images), step)
        parts = self.problem.parts(len(rows))

        def of(part: slice) -> list[Tensor]:
            own, seen = place.detach().requires_grad_(True), images[rows[part]].detach().requires_grad_(True)
            with torch.enable_grad():
                loss = self._loss(own, augment(seen), self.targets[rows[part]]) * (len(seen) / len(rows))
                along = torch.autograd.grad(loss, own, create_graph=True)[0] @ vector
                by_place, by_images = torch.autograd.grad(along, (own, seen))
            return [along.detach(), by_place, by_images]

        total: list[Tensor] = []
        by_images = torch.zeros_like(images)
        for part, (along, by_place, by_part) in zip(parts, self.problem.workers.map(of, parts), strict=True):
            by_images[rows[part]] = by_part
            total = summed([total, [along, by_place]] if total else [[along, by_place]])
        return total[0], total[1], by_images
