"""Truncated unrolling, a method on trial: the slope of real images' loss through a window of a student's training.

A pool of students is trained on the synthetic images. One step of distilling takes a student through a window of
steps, asks real images for the slope of the loss that it has then by its parameters, and follows that back through
the window, each step done again, so that memory is that of one step. The student goes on from the end of the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from medistill.augment import augment_each, sample_augmentation
from medistill.distil.descent import loss_gradient
from medistill.distil.experts import flatten, unflatten
from medistill.distil.method import Gradients, MethodInfo, Observed, State, register
from medistill.distil.networked import NetworkMethod
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Batch
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.parallel import summed


@register
class Unrolled(NetworkMethod):
    """Random truncated backpropagation through time (Feng, Vedantam, Kempe, ICLR 2024), section 4.

    Where a window ends is random as students of all ages are in the pool. Students descend with momentum, images are
    augmented each by its own draw, as a recipient's are.
    """

    info = MethodInfo(
        name="bptt",
        title="Random truncated backpropagation through time",
        version=1,
        kind="distillation",
        cost="hours",
        bibtex=(
            "@inproceedings{feng2024bptt, title={Embarrassingly Simple Dataset Distillation}, "
            "author={Feng, Yunzhen and Vedantam, Shanmukha Ramakrishna and Kempe, Julia}, "
            "booktitle={ICLR}, year={2024}}"
        ),
        learns_labels=True,
        queries=("gradient",),
        couples_classes=True,
    )

    iterations: int = Field(500, ge=1, le=10_000_000, description="steps on the images")
    networks: int = Field(8, ge=1, le=1000, description="students in the pool")
    window: int = Field(15, ge=1, le=1000, description="steps of a student that a step goes back through")
    longest_training: int = Field(90, ge=1, le=100_000, description="steps after which a student is made anew")
    student_rate: float = Field(0.02, gt=0, le=10, description="learning rate of students")
    student_momentum: float = Field(0.9, ge=0, lt=1, description="their momentum")
    student_batch: int = Field(64, ge=1, le=65536, description="synthetic images per step of a student, at most all")
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per step, of all classes together")
    label_learning_rate: float = Field(0.05, ge=0, le=1e6, description="of the labels' logits")
    certainty: float = Field(0.9, gt=0, lt=1, description="probability of an image's own class to begin with")
    filters: int = Field(32, ge=1, le=4096, description="filters per convolution")

    def steps(self, problem: DistillationProblem) -> int:
        return self.iterations

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser("adam", learning_rate=0.02, momentum=0.9, schedule="cosine")

    def label_rate(self) -> float:
        return self.label_learning_rate

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        state = State(self.first_images(problem, key), problem.targets)
        state.label_logits = problem.task.logits(self.certainty, problem.targets.to(state.images.dtype))
        draw = key.child("ages").numpy()
        # The first students are given up at different ages, so that they are not all new at once.
        spans = range(self.window, self.longest_training + 1)
        state.buffers["left"] = torch.tensor([int(draw.choice(spans)) for _ in range(self.networks)])
        state.buffers["births"] = torch.zeros(self.networks, dtype=torch.int64)
        for slot in range(self.networks):
            self._born(state.buffers, problem, key, slot)
        return state

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """Where the student is at each step of the window, (window + 1, p), its speed at the end, and the slope of
        real images' loss there, (p,), with the loss.
        """
        student = _Student(self, problem, state, key)
        place, speed = state.buffers[f"student{student.slot}.place"], state.buffers[f"student{student.slot}.speed"]
        places = [place]
        for step in range(self.window):
            speed = self.student_momentum * speed + student.gradient(places[-1], state, step)
            places.append(places[-1] - self.student_rate * speed)
        loss, slope = self._asked(problem, strata, student, places[-1])
        return {"places": torch.stack(places), "speed": speed, "loss": loss, "slope": slope}

    def gradients(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Gradients:
        """Of real images' loss by images and labels, through the window."""
        student, places = _Student(self, problem, state, key), observed["places"]
        assert state.label_logits is not None
        by_images, by_labels = torch.zeros_like(state.images), torch.zeros_like(state.label_logits)
        of_place, of_speed = observed["slope"], torch.zeros_like(observed["slope"])
        for step in reversed(range(self.window)):
            # speed' = m speed + g(place), place' = place - r speed'
            of_speed = of_speed - self.student_rate * of_place
            by_place, image, label = student.products(places[step], state, step, of_speed)
            by_images += image
            by_labels += label
            of_place, of_speed = of_place + by_place, self.student_momentum * of_speed
        extra = {"place": places[-1], "speed": observed["speed"]}
        return Gradients(observed["loss"], by_images, by_labels, extra)

    def after_update(
        self, state: State, problem: DistillationProblem, key: Key, gradients: Mapping[str, Tensor]
    ) -> None:
        buffers, slot = state.buffers, state.step % self.networks
        buffers["left"], buffers["births"] = buffers["left"].clone(), buffers["births"].clone()
        buffers["left"][slot] -= self.window
        if buffers["left"][slot] >= self.window:
            buffers[f"student{slot}.place"], buffers[f"student{slot}.speed"] = gradients["place"], gradients["speed"]
            return
        # The last window ends anywhere within the last steps, so that windows end at all ages.
        draw = key.child("span", state.step).numpy()
        buffers["left"][slot] = self.longest_training - int(draw.integers(self.window))
        buffers["births"][slot] += 1
        self._born(buffers, problem, key, slot)

    def _born(self, buffers: dict[str, Tensor], problem: DistillationProblem, key: Key, slot: int) -> None:
        new = key.child("student", slot, int(buffers["births"][slot]))
        place = flatten(problem.parameters(self.network(problem), new))
        buffers[f"student{slot}.place"], buffers[f"student{slot}.speed"] = place, torch.zeros_like(place)

    def _asked(
        self, problem: DistillationProblem, strata: Sequence[int], student: _Student, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Real images' loss and its slope, the mean over strata."""
        each = -(-self.real_batch // len(strata))

        def of(stratum: int) -> list[Tensor]:
            def slope(batch: Batch) -> list[Tensor]:
                own = place.detach().requires_grad_(True)
                with torch.enable_grad():
                    loss = student.loss(own, batch.images, batch.targets) / len(strata)
                return [loss.detach(), torch.autograd.grad(loss, own)[0]]

            drawn = student.key.child("real", stratum)
            return self.real(problem).gradient(slope, stratum, each, drawn).value

        loss, slope = summed(problem.workers.map(of, strata))
        return loss, slope


class _Student:
    """A network's loss on a batch of synthetic images at each step of a window, and derivatives of it."""

    def __init__(self, method: Unrolled, problem: DistillationProblem, state: State, key: Key) -> None:
        self.method, self.problem, self.key = method, problem, key.child("step", state.step)
        self.slot, self.network = state.step % method.networks, method.network(problem)
        self.like = _shapes(problem, self.network, key)

    def loss(self, place: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return self.problem.task.loss(self.network.logits(unflatten(place, self.like), images), targets)

    def _rows(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Rows of a step's images, and the numbers that augment them."""
        generator = self.key.child("student", step).generator()
        rows = torch.randperm(len(images), generator=generator)[: self.method.student_batch]
        return rows, sample_augmentation(len(rows), generator, images.ndim - 2)

    def _augmented(self, images: Tensor, numbers: Tensor) -> Tensor:
        if not self.method.augment:
            return images
        return augment_each(images, numbers, self.problem.normalisation.flips)

    def gradient(self, place: Tensor, state: State, step: int) -> Tensor:
        """Of the loss by the parameters, (p,)."""
        rows, numbers = self._rows(state.images, step)
        assert state.label_logits is not None
        labels = self.problem.task.probabilities(state.label_logits)

        def loss(learned: Parameters, part: slice) -> Tensor:
            shown = self._augmented(state.images[rows[part]], numbers[part])
            return self.loss(learned["place"], shown, labels[rows[part]])

        return loss_gradient(self.problem, loss, {"place": place}, len(rows))["place"]

    def products(self, place: Tensor, state: State, step: int, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of the gradient times a vector by parameters, images and the labels' logits."""
        rows, numbers = self._rows(state.images, step)
        parts = self.problem.parts(len(rows))
        assert state.label_logits is not None
        logits = state.label_logits

        def of(part: slice) -> list[Tensor]:
            own, seen = place.detach().requires_grad_(True), state.images[rows[part]].detach().requires_grad_(True)
            label = logits[rows[part]].detach().requires_grad_(True)
            with torch.enable_grad():
                shown = self._augmented(seen, numbers[part])
                loss = self.loss(own, shown, self.problem.task.probabilities(label)) * (len(seen) / len(rows))
                along = torch.autograd.grad(loss, own, create_graph=True)[0] @ vector
                return list(torch.autograd.grad(along, (own, seen, label)))

        by_place = torch.zeros_like(place)
        by_images, by_labels = torch.zeros_like(state.images), torch.zeros_like(logits)
        for part, (share, image, label) in zip(parts, self.problem.workers.map(of, parts), strict=True):
            by_place += share
            by_images[rows[part]], by_labels[rows[part]] = image, label
        return by_place, by_images, by_labels


_known: dict[object, Parameters] = {}


def _shapes(problem: DistillationProblem, network: object, key: Key) -> Parameters:
    """Parameters of a network in their shapes."""
    if network not in _known:
        _known[network] = problem.parameters(network, key)  # type: ignore[arg-type]
    return _known[network]
