"""Kernel ridge regression on the features of a pool of partly trained networks.

A ridge regression fitted to the synthetic images and their labels should predict the real
images' labels. The images are learned through the regression, which has a closed form, so
no training needs to be unrolled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medistill.distil.matching import ridge_prediction
from medistill.distil.method import MethodInfo, State, register
from medistill.distil.networked import NetworkMethod
from medistill.distil.problem import Problem
from medistill.keys import Key
from medistill.nets.convnet import Parameters


@register
class FRePo(NetworkMethod):
    """Neural feature regression with pooling (Zhou, Nezhadarya, Ba, NeurIPS 2022), algorithm 1, equation 4.

    Here real images are drawn evenly from the classes, and labels are learned as probabilities
    (a softmax of what is learned), because a recipient trains with cross entropy; the
    regression's targets are those probabilities less 1/classes. Networks of the pool are
    trained by plain gradient descent.
    """

    info = MethodInfo(
        name="frepo",
        title="Neural feature regression with pooling",
        version=1,
        kind="distillation",
        cost="minutes",
        bibtex=(
            "@inproceedings{zhou2022frepo, title={Dataset Distillation using Neural Feature Regression}, "
            "author={Zhou, Yongchao and Nezhadarya, Ehsan and Ba, Jimmy}, booktitle={NeurIPS}, year={2022}}"
        ),
        learns_labels=True,
        joint=True,
    )

    iterations: int = Field(1000, ge=1, le=10_000_000, description="steps on the images")
    optimiser: Literal["sgd", "adam"] = Field("adam", description="of the images")
    learning_rate: float = Field(0.02, gt=0, le=1e6, description="of the images, in normalised units")
    learn_labels: bool = Field(True, description="learn labels too; else each image keeps its class")
    label_learning_rate: float = Field(0.02, ge=0, le=1e6, description="of the labels' scores")
    certainty: float = Field(0.9, gt=0, lt=1, description="probability of an image's own class to begin with")
    networks: int = Field(10, ge=1, le=1000, description="networks in the pool")
    longest_training: int = Field(
        100, ge=1, le=100_000, description="a network is made anew after at most that many steps"
    )
    network_learning_rate: float = Field(0.01, gt=0, le=10, description="of the networks, plain gradient descent")
    network_batch: int = Field(256, ge=1, le=65536, description="synthetic images per step of a network")
    real_batch: int = Field(512, ge=1, le=1_000_000, description="real images per step, of all classes together")
    ridge: float = Field(1e-6, gt=0, le=1, description="ridge, as a share of the kernel's mean diagonal")
    filters: int = Field(64, ge=1, le=4096, description="filters per convolution")

    def label_rate(self) -> float:
        return self.label_learning_rate

    def memory_mb(self, problem: Problem, classes: int) -> float:
        network = self.network(problem)
        features = 8e-6 * network.embedding_size * (self.real_batch + sum(problem.counts))
        made, real = (problem.at_once(n) for n in (sum(problem.counts), -(-self.real_batch // problem.classes)))
        return (
            self.with_images_mb(problem, (made + real) * self.activation_mb(problem))
            + 3 * features
            + self.networks * (4e-6 * network.parameter_count)
        )

    def setup(self, problem: Problem, key: Key) -> State:
        state = State(self.first_images(problem, key), problem.labels)
        if self.learn_labels:
            # Scores whose softmax gives the own class its certainty and the others equal shares.
            others = max(1, problem.classes - 1)
            gap = torch.tensor(self.certainty * others / (1 - self.certainty)).log()
            state.label_scores = functional.one_hot(problem.labels, problem.classes) * gap
        draw = key.child("ages").numpy()
        # Networks begin at different ages, so that they are not all new at once.
        ages = [int(draw.integers(self.longest_training)) for _ in range(self.networks)]
        state.memory["ages"] = torch.tensor(ages)
        state.memory["births"] = torch.zeros(self.networks, dtype=torch.int64)
        for slot in range(self.networks):
            self._keep(state, slot, problem.parameters(self.network(problem), key.child("network", slot, 0)))
        return state

    def loss(self, state: State, problem: Problem, classes: Sequence[int], key: Key) -> Tensor:
        here = key.child("step", state.step)
        network, parameters = self.network(problem), self._parameters(state, self._slot(here))
        change = self.change(problem, here.child("augment"))
        each = -(-self.real_batch // problem.classes)
        rows = [problem.draw(label, each, here.child("real", label)) for label in range(problem.classes)]
        with torch.no_grad():
            parts = ((label, p) for label, own in enumerate(rows) for p in own.split(problem.at_once(len(own))))
            real = torch.cat([self.embed(network, parameters, change(problem.of_class(*part))) for part in parts])
        wanted = torch.repeat_interleave(torch.arange(problem.classes), torch.tensor([len(r) for r in rows]))
        wanted = wanted.to(problem.device)
        made = self.embed(network, parameters, change(state.images), problem.images_at_once)
        centre = 1 / problem.classes
        targets = self._labels(state, problem).to(made.dtype) - centre
        predicted = ridge_prediction(made, targets, real, self.ridge)
        truth = functional.one_hot(wanted, problem.classes).to(predicted.dtype) - centre
        return 0.5 * (predicted - truth).square().sum(1).mean().to(made.dtype)

    def after_update(self, state: State, problem: Problem, key: Key) -> None:
        here = key.child("step", state.step)
        slot = self._slot(here)
        memory = state.memory
        memory["ages"], memory["births"] = memory["ages"].clone(), memory["births"].clone()
        memory["ages"][slot] += 1
        network = self.network(problem)
        if memory["ages"][slot] >= self.longest_training:
            memory["ages"][slot] = 0
            memory["births"][slot] += 1
            again = key.child("network", slot, int(memory["births"][slot]))
            self._keep(state, slot, problem.parameters(network, again))
            return
        parameters = {n: p.detach().requires_grad_(True) for n, p in self._parameters(state, slot).items()}
        order = torch.randperm(len(state.labels), generator=here.child("order").generator())
        rows = order[: self.network_batch]
        x = self.change(problem, here.child("own"))(state.images.detach()[rows])
        labels = self._labels(state, problem).detach()[rows]
        with torch.enable_grad():
            scores = self.scores(network, parameters, x, problem.images_at_once)
            loss = functional.cross_entropy(scores, labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        updated = {
            name: parameter.detach() - self.network_learning_rate * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        self._keep(state, slot, updated)

    def _slot(self, key: Key) -> int:
        return int(key.child("slot").numpy().integers(self.networks))

    @staticmethod
    def _labels(state: State, problem: Problem) -> Tensor:
        if state.label_scores is not None:
            return state.label_scores.softmax(1)
        return functional.one_hot(state.labels, problem.classes).to(state.images.dtype)

    @staticmethod
    def _keep(state: State, slot: int, parameters: Parameters) -> None:
        state.memory.update({f"network{slot}.{name}": tensor for name, tensor in parameters.items()})

    @staticmethod
    def _parameters(state: State, slot: int) -> Parameters:
        prefix = f"network{slot}."
        return {n.removeprefix(prefix): t for n, t in state.memory.items() if n.startswith(prefix)}
