"""Distribution matching.

For each class, the mean embedding of real images and that of the synthetic ones, in a
network that was never trained, are brought together; both sides are changed by the same
random augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medistill.augment import Augmentation, siamese
from medistill.distil.matching import squared_distance
from medistill.distil.method import Method, MethodInfo, State, register
from medistill.distil.problem import Problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters


@register
class DM(Method):
    """Distribution matching (Zhao, Bilen, WACV 2023), equation 6.

    Published setting: 20,000 iterations, a new network at each (``networks=0``), 128
    filters, 256 real images per class, learning rate 1. The defaults keep the loss and cut
    the cost: a pool of networks is met again and again, and what a network says of the real
    images, under the augmentation drawn for it, is computed once.
    """

    info = MethodInfo(
        name="dm",
        title="Distribution matching",
        version=1,
        kind="distillation",
        cost="minutes",
        bibtex=(
            "@inproceedings{zhao2023dm, title={Dataset Condensation with Distribution Matching}, "
            "author={Zhao, Bo and Bilen, Hakan}, booktitle={WACV}, year={2023}}"
        ),
    )

    iterations: int = Field(400, ge=1, le=10_000_000, description="steps on the images")
    networks: int = Field(100, ge=0, le=100_000, description="networks in the pool; 0 makes a new one each step")
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per class and network")
    filters: int = Field(64, ge=1, le=4096, description="filters per convolution")
    depth: int = Field(0, ge=0, le=10, description="blocks of the network; 0 chooses by image size")
    augment: bool = Field(True, description="siamese augmentation")
    start: Literal["real", "noise"] = Field("real", description="first images")

    @property
    def starts_from_real_images(self) -> bool:
        return self.start == "real"

    def setup(self, problem: Problem, key: Key) -> State:
        if self.start == "real":
            images = problem.random_images(key.child("start"))
        else:
            shape = (len(problem.labels), *problem.shape)
            images = torch.randn(shape, generator=key.child("start").generator())
            images = images.clamp(*problem.bounds)
        state = State(images, problem.labels)
        if self.networks:
            size = self._network(problem).embedding_size
            state.memory["targets"] = torch.zeros(self.networks, problem.classes, size)
            state.memory["known"] = torch.zeros(self.networks, problem.classes, dtype=torch.bool)
        return state

    def loss(self, state: State, problem: Problem, classes: Sequence[int], key: Key) -> Tensor:
        slot = state.step % self.networks if self.networks else state.step
        here = key.child("network", slot)
        network, parameters = self._network(problem), self._network(problem).parameters(here)
        changes = [self._change(problem, here.child("augment", label)) for label in classes]
        made = [change(state.images[problem.made(label)]) for label, change in zip(classes, changes, strict=True)]
        # One forward for all classes; normalisation is per image, so they do not mix.
        embedded = network.embed(parameters, torch.cat(made)).split([len(m) for m in made])
        total = torch.zeros(())
        for label, change, own in zip(classes, changes, embedded, strict=True):
            target = self._target(state, problem, label, slot, network, parameters, change, here)
            total = total + squared_distance(own.mean(0), target)
        return total

    def _network(self, problem: Problem) -> ConvNet:
        return ConvNet(*problem.shape, problem.classes, self.filters, self.depth)

    def _change(self, problem: Problem, key: Key) -> Augmentation:
        return siamese(key.generator(), problem.flips) if self.augment else lambda x: x

    def _target(
        self,
        state: State,
        problem: Problem,
        label: int,
        slot: int,
        network: ConvNet,
        parameters: Parameters,
        change: Augmentation,
        key: Key,
    ) -> Tensor:
        """Mean embedding of real images of a class, (embedding_size,)."""
        if self.networks and state.memory["known"][slot, label]:
            return state.memory["targets"][slot, label]
        rows = problem.draw(label, self.real_batch, key.child("real", label))
        with torch.no_grad():
            total = torch.zeros(network.embedding_size)
            for chunk in rows.split(64):  # small enough for the cache
                total += network.embed(parameters, change(problem.of_class(label, chunk))).sum(0)
        target = total / len(rows)
        if self.networks:
            state.memory["targets"][slot, label] = target
            state.memory["known"][slot, label] = True
        return target
