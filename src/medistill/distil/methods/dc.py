"""Gradient matching.

A network's gradient on synthetic images of a class is turned towards its gradient on real
images of that class, while the network is trained on the synthetic images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medistill.distil.matching import gradient_distance
from medistill.distil.method import MethodInfo, State, register
from medistill.distil.networked import NetworkMethod, in_bfloat16
from medistill.distil.problem import Problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (100, 2)}
"""Steps on the images for each network, and epochs of the network after each, as published by images per class."""


def published_loops(ipc: int) -> tuple[int, int]:
    """Outer and inner loops for any number of images per class.

    Between the published numbers the inner loop is interpolated linearly; the outer loop is
    the number of images per class throughout.

    >>> published_loops(10), published_loops(15)
    ((10, 50), (15, 38))
    """
    known = sorted(LOOPS)
    inner = np.interp(ipc, known, [LOOPS[i][1] for i in known])
    return ipc, max(1, round(float(inner)))


@register
class DC(NetworkMethod):
    """Dataset condensation with gradient matching (Zhao, Mopuri, Bilen, ICLR 2021), algorithm 1, equations 8 and 9.

    Each of ``iterations`` networks is met for ``outer_loops`` steps on the images; after each
    it is trained for ``inner_loops`` epochs on the synthetic images as they then are.
    """

    info = MethodInfo(
        name="dc",
        title="Dataset condensation with gradient matching",
        version=2,
        kind="distillation",
        cost="hours",
        bibtex=(
            "@inproceedings{zhao2021dc, title={Dataset Condensation with Gradient Matching}, "
            "author={Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan}, booktitle={ICLR}, year={2021}}"
        ),
    )

    iterations: int = Field(1000, ge=1, le=1_000_000, description="networks, each newly initialised")
    learning_rate: float = Field(0.1, gt=0, le=1e6, description="of the images, in normalised units")
    outer_loops: int = Field(0, ge=0, le=10_000, description="steps on the images for a network; 0: as published")
    inner_loops: int = Field(0, ge=0, le=10_000, description="epochs of the network after a step; 0: as published")
    network_learning_rate: float = Field(0.01, gt=0, le=10, description="of the network, plain gradient descent")
    network_batch: int = Field(256, ge=1, le=65536, description="synthetic images per step of the network")
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per class and step")
    augment: bool = Field(False, description="siamese augmentation")
    start: Literal["real", "noise"] = Field("noise", description="first images")

    def loops(self, problem: Problem) -> tuple[int, int]:
        """Outer and inner loops for the images per class of this problem."""
        outer, inner = published_loops(max(problem.counts))
        return self.outer_loops or outer, self.inner_loops or inner

    def steps(self, problem: Problem) -> int:
        return self.iterations * self.loops(problem)[0]

    def memory_mb(self, problem: Problem, classes: int) -> float:
        made = sum(sorted(problem.counts)[-classes:])
        at_once = classes if problem.device.type != "cpu" else 1
        # A gradient that is itself differentiated keeps more than one pass does (fitted to measured peaks).
        kept = 2.3 * made + at_once * min(self.real_batch, max(problem.sizes))
        # The network's own steps take made images of all classes, however few a backward takes.
        kept = max(kept, 1.35 * min(self.network_batch, sum(problem.counts)))
        return kept * self.activation_mb(problem)

    def setup(self, problem: Problem, key: Key) -> State:
        return State(self.first_images(problem, key), problem.labels)

    def loss(self, state: State, problem: Problem, classes: Sequence[int], key: Key) -> Tensor:
        network = self.network(problem)
        parameters = {n: p.detach().requires_grad_(True) for n, p in self._parameters(state, problem, key).items()}
        weights = [p for p in parameters.values() if p.ndim > 1]
        pairs = (self._pair(state, problem, label, key) for label in classes)
        if problem.device.type != "cpu" and self._alike(problem, classes):
            return self._together(network, parameters, classes, list(pairs))
        total = state.images.new_zeros(())
        for label, (images, made) in zip(classes, pairs, strict=True):
            real = self._real_gradient(network, parameters, weights, images, label)
            total = total + gradient_distance(
                self._gradient(network, parameters, weights, made, label, True), [g.detach() for g in real]
            )
        return total

    def _pair(self, state: State, problem: Problem, label: int, key: Key) -> tuple[Tensor, Tensor]:
        """A step's real images of a class, and the made ones, changed alike."""
        here = key.child("step", state.step, label)
        change = self.change(problem, here.child("augment"))
        rows = problem.draw(label, self.real_batch, here.child("real"))
        return change(problem.of_class(label, rows)), change(state.images[problem.made(label)])

    def _alike(self, problem: Problem, classes: Sequence[int]) -> bool:
        """Whether every class gives as many images, so that they make one tensor."""
        return len({(min(self.real_batch, problem.sizes[c]), problem.counts[c]) for c in classes}) == 1

    def _together(
        self, network: ConvNet, parameters: Parameters, classes: Sequence[int], pairs: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The loss of all classes in a few large steps, as a GPU likes them."""
        held = {n: p.detach() for n, p in parameters.items()}
        labels = torch.tensor(classes, device=pairs[0][0].device)

        def gradients(parameters: Parameters, images: Tensor) -> list[Tensor]:
            """Of each class, (classes, ...) for each weight."""
            weights = {n: p for n, p in parameters.items() if p.ndim > 1}

            def own(x: Tensor, label: Tensor) -> Parameters:
                def loss(weights: Parameters) -> Tensor:
                    scores = network.logits({**parameters, **weights}, x)
                    return functional.cross_entropy(scores, label.expand(len(x)))

                return torch.func.grad(loss)(weights)

            return list(torch.func.vmap(own)(images, labels).values())

        real, made = (torch.stack(side) for side in zip(*pairs, strict=True))
        if self.precision == "bfloat16":
            aims = [g.to(real.dtype) for g in gradients(in_bfloat16(held), real.bfloat16())]
        else:
            aims = gradients(held, real)
        distances: Tensor = torch.func.vmap(gradient_distance)(gradients(held, made), [g.detach() for g in aims])
        return distances.sum()

    def _real_gradient(
        self, network: ConvNet, parameters: Parameters, weights: list[Tensor], images: Tensor, label: int
    ) -> list[Tensor]:
        """Of the real images' loss, in the precision asked for; it is never differentiated again."""
        if self.precision != "bfloat16":
            return self._gradient(network, parameters, weights, images, label, False)
        half = {n: p.detach().requires_grad_(True) for n, p in in_bfloat16(parameters).items()}
        own = [p for p in half.values() if p.ndim > 1]
        found = self._gradient(network, half, own, images.bfloat16(), label, False)
        return [g.to(w.dtype) for g, w in zip(found, weights, strict=True)]

    @staticmethod
    def _gradient(
        network: ConvNet, parameters: Parameters, weights: list[Tensor], images: Tensor, label: int, keep: bool
    ) -> list[Tensor]:
        labels = torch.full((len(images),), label, device=images.device)
        loss = functional.cross_entropy(network.logits(parameters, images), labels)
        return list(torch.autograd.grad(loss, weights, create_graph=keep))

    def after_update(self, state: State, problem: Problem, key: Key) -> None:
        outer, inner = self.loops(problem)
        if state.step % outer == outer - 1:
            return  # the next step meets a new network
        network = self.network(problem)
        parameters = {n: p.requires_grad_(True) for n, p in self._parameters(state, problem, key).items()}
        images, labels = state.images.detach(), state.labels
        for epoch in range(inner):
            here = key.child("inner", state.step, epoch)
            order = torch.randperm(len(images), generator=here.generator())
            for number, rows in enumerate(order.split(self.network_batch)):
                x = self.change(problem, here.child("augment", number))(images[rows])
                with torch.enable_grad():
                    loss = functional.cross_entropy(self.scores(network, parameters, x), labels[rows])
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.data.sub_(self.network_learning_rate * gradient)
        state.memory |= {f"network.{n}": p.detach() for n, p in parameters.items()}

    def _parameters(self, state: State, problem: Problem, key: Key) -> Parameters:
        """Of the network as it is at this step: new at the first of its outer loops, else as trained since."""
        outer, _ = self.loops(problem)
        if state.step % outer == 0:
            return problem.parameters(self.network(problem), key.child("network", state.step // outer))
        return {n[8:]: t for n, t in state.memory.items() if n.startswith("network.")}
