"""Gradient matching.

A network's gradient on synthetic images of a stratum is turned towards its gradient on real
images of that stratum, while the network is trained on the synthetic images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medistill.distil.descent import loss_gradient
from medistill.distil.matching import gradient_distance
from medistill.distil.method import MethodInfo, Observed, State, register
from medistill.distil.networked import NetworkMethod, in_bfloat16
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Batch
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.parallel import PIECE

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (100, 2)}
"""Steps on the images for each network, and epochs of the network after each, as published by images per class."""


def published_loops(ipc: int) -> tuple[int, int]:
    """Outer and inner loops for any number of images per class.

    Between the published numbers the inner loop is interpolated linearly; the outer loop is
    the number of images per class throughout.

    >>> published_loops(10), published_loops(15)
    ((10, 50), (15, 38))
    """
    published = sorted(LOOPS)
    inner = np.interp(ipc, published, [LOOPS[i][1] for i in published])
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
        version=3,
        kind="distillation",
        cost="hours",
        bibtex=(
            "@inproceedings{zhao2021dc, title={Dataset Condensation with Gradient Matching}, "
            "author={Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan}, booktitle={ICLR}, year={2021}}"
        ),
        queries=("gradient",),
    )

    iterations: int = Field(1000, ge=1, le=1_000_000, description="networks, each newly initialised")
    outer_loops: int | None = Field(
        None, ge=1, le=10_000, description="steps on the images for a network; as published if not given"
    )
    inner_loops: int | None = Field(
        None, ge=1, le=10_000, description="epochs of the network after a step; as published if not given"
    )
    network_learning_rate: float = Field(0.01, gt=0, le=10, description="of the network, plain gradient descent")
    network_batch: int = Field(256, ge=1, le=65536, description="synthetic images per step of the network")
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per class and step")
    augment: bool = Field(False, description="siamese augmentation")

    def loops(self, problem: DistillationProblem) -> tuple[int, int]:
        """Outer and inner loops for the images per class of this problem."""
        outer, inner = published_loops(max(problem.synthetic_per_stratum))
        return self.outer_loops or outer, self.inner_loops or inner

    def steps(self, problem: DistillationProblem) -> int:
        return self.iterations * self.loops(problem)[0]

    def kinds_of_steps(self, problem: DistillationProblem, done: int) -> Sequence[tuple[int, int]]:
        """Those that train their network further, and the last ones of a network."""
        outer, kinds = self.loops(problem)[0], []
        for last in (False, True):
            alike = [s for s in range(done, self.steps(problem)) if (s % outer == outer - 1) == last]
            examples = [step for step in alike if step > done]
            kinds += [(len(alike), examples[0])] if examples else []
        return kinds

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser(learning_rate=0.1)

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        synthetic = sum(sorted(problem.synthetic_per_stratum)[-strata:])
        on_cpu = problem.device.type == "cpu"
        # A gradient that is itself differentiated keeps more than one pass does (fitted to measured peaks).
        real = (0.85 if on_cpu else strata) * min(self.real_batch, max(problem.real_per_stratum))
        kept = (2.3 * synthetic + real) * self.activation_mb(problem)
        kept += min(self.real_batch, max(problem.real_per_stratum)) * self.batch_mb(problem)
        # The network's own steps take synthetic images of all strata, however few a piece takes.
        batch = min(self.network_batch, sum(problem.synthetic_per_stratum))
        own = 1.35 * min(batch, problem.workers.number * PIECE if on_cpu else batch) * self.activation_mb(problem)
        return max(self.side_by_side(problem, strata) * kept, own)

    def strata_per_piece(self, problem: DistillationProblem) -> int:
        """One: real images, of which there are many more, are asked for with it."""
        return 1 if problem.device.type == "cpu" else problem.strata

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        return State(self.first_images(problem, key), problem.targets)

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """The gradient by each weight on real images, (strata, ...), in the precision asked for."""
        network = self.network(problem)
        parameters = _differentiable(self._parameters(state, problem, key))
        by_stratum = []
        for stratum in strata:
            here = key.child("step", state.step, stratum)
            augment = self.sample_augmentation(problem, here.child("augment"))

            def gradient(batch: Batch) -> list[Tensor]:
                images = augment(batch.images)  # noqa: B023
                return self._real_gradient(problem, network, parameters, images, batch.targets)

            asked = self.real(problem).gradient(gradient, stratum, self.real_batch, here.child("real"))
            by_stratum.append(asked.value)
        names = [name for name, p in parameters.items() if p.ndim > 1]
        return {
            name: torch.stack(gradients) for name, gradients in zip(names, zip(*by_stratum, strict=True), strict=True)
        }

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        network = self.network(problem)
        parameters = _differentiable(self._parameters(state, problem, key))
        synthetic = [self._synthetic(state, problem, stratum, key) for stratum in strata]
        if problem.device.type != "cpu" and len({len(images) for images in synthetic}) == 1:
            return self._together(problem, network, parameters, observed, synthetic, state, strata)
        total = state.images.new_zeros(())
        for place, (stratum, images) in enumerate(zip(strata, synthetic, strict=True)):
            gradients = _gradient(
                problem, network, parameters, images, state.targets[problem.synthetic(stratum)], True
            )
            total = total + gradient_distance(gradients, [observed[name][place] for name in observed])
        return total

    def _synthetic(self, state: State, problem: DistillationProblem, stratum: int, key: Key) -> Tensor:
        """A stratum's synthetic images, augmented as its real ones are in this step."""
        here = key.child("step", state.step, stratum)
        return self.sample_augmentation(problem, here.child("augment"))(state.images[problem.synthetic(stratum)])

    def _together(
        self,
        problem: DistillationProblem,
        network: ConvNet,
        parameters: Parameters,
        observed: Observed,
        synthetic: list[Tensor],
        state: State,
        strata: Sequence[int],
    ) -> Tensor:
        """The loss of all strata in a few large steps, as a GPU likes them."""
        held = {n: p.detach() for n, p in parameters.items()}
        weights = {name: held[name] for name in observed}
        targets = torch.stack([state.targets[problem.synthetic(s)] for s in strata])

        def gradients_of(images: Tensor, wanted: Tensor) -> Parameters:
            def loss(weights: Parameters) -> Tensor:
                return problem.task.loss(network.logits({**held, **weights}, images), wanted)

            return torch.func.grad(loss)(weights)

        gradients = torch.func.vmap(gradients_of)(torch.stack(synthetic), targets)
        pairs = [gradients[name] for name in observed], [observed[name] for name in observed]
        distances: Tensor = torch.func.vmap(gradient_distance)(*pairs)
        return distances.sum()

    def _real_gradient(
        self, problem: DistillationProblem, network: ConvNet, parameters: Parameters, images: Tensor, targets: Tensor
    ) -> list[Tensor]:
        """Of the real images' loss, in the precision asked for; it is never differentiated again."""
        if self.precision != "bfloat16":
            return _gradient(problem, network, parameters, images, targets, False)
        half = _differentiable(in_bfloat16(parameters))
        gradients = _gradient(problem, network, half, images.bfloat16(), targets, False)
        return [g.to(images.dtype) for g in gradients]

    def after_update(
        self, state: State, problem: DistillationProblem, key: Key, gradients: Mapping[str, Tensor]
    ) -> None:
        outer, inner = self.loops(problem)
        if state.step % outer == outer - 1:
            return  # the next step meets a new network
        network = self.network(problem)
        parameters = self._parameters(state, problem, key)
        images, targets = state.images.detach(), state.targets
        for epoch in range(inner):
            here = key.child("inner", state.step, epoch)
            order = torch.randperm(len(images), generator=here.generator())
            for number, rows in enumerate(order.split(self.network_batch)):
                augment = self.sample_augmentation(problem, here.child("augment", number))

                def loss(learned: Parameters, part: slice) -> Tensor:
                    x, wanted = images[rows[part]], targets[rows[part]]  # noqa: B023
                    return problem.task.loss(self.logits(network, learned, augment(x)), wanted)  # noqa: B023

                slopes = loss_gradient(problem, loss, parameters, len(rows))
                parameters = {n: p - self.network_learning_rate * slopes[n] for n, p in parameters.items()}
        state.buffers |= {f"network.{n}": p for n, p in parameters.items()}

    def _parameters(self, state: State, problem: DistillationProblem, key: Key) -> Parameters:
        """Of the network as it is at this step: new at the first of its outer loops, else as trained since."""
        outer, _ = self.loops(problem)
        if state.step % outer == 0:
            return problem.parameters(self.network(problem), key.child("network", state.step // outer))
        return {n[8:]: t for n, t in state.buffers.items() if n.startswith("network.")}


def _differentiable(parameters: Parameters) -> Parameters:
    return {name: p.detach().requires_grad_(True) for name, p in parameters.items()}


def _gradient(
    problem: DistillationProblem,
    network: ConvNet,
    parameters: Parameters,
    images: Tensor,
    targets: Tensor,
    keep: bool,
) -> list[Tensor]:
    """Gradient of the loss by weights, not by biases, scales and shifts."""
    weights = [p for p in parameters.values() if p.ndim > 1]
    with torch.enable_grad():
        loss = problem.task.loss(network.logits(parameters, images), targets)
    return list(torch.autograd.grad(loss, weights, create_graph=keep))
