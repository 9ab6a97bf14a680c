"""What distribution-matching methods share: a pool of networks that look at real images once.

Such a method compares a statistic of real and of synthetic embeddings. The real side does
not depend on the synthetic images, so for each network, with the augmentation drawn for it,
it is computed once and met again and again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from medistill.augment import Augmentation
from medistill.distil.method import State
from medistill.distil.networked import NetworkMethod
from medistill.distil.problem import CHUNK, Problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters


class PooledMatching(NetworkMethod):
    """Base of methods that match a mean over images; subclasses say of what, and how it is compared.

    Each class is matched alone and the classes' losses are added. Both sides are changed by
    the same siamese augmentation.
    """

    iterations: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="steps on the images; 0: 400, beyond 20 images per class fewer, at least 100",
    )
    networks: int = Field(100, ge=0, le=100_000, description="networks in the pool; 0 makes a new one each step")
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per class and network")
    filters: int = Field(64, ge=1, le=4096, description="filters per convolution")

    def steps(self, problem: Problem) -> int:
        """As asked for, or as many as keep the work bounded: a step costs as much as there are images."""
        return self.iterations or max(100, min(400, 8000 // max(problem.counts)))

    def memory_mb(self, problem: Problem, classes: int) -> float:
        network = self.network(problem)
        made = problem.at_once(sum(sorted(problem.counts)[-classes:]))
        pool = 4e-6 * self.networks * problem.classes * self.statistic_size(network.embedding_size)
        real = problem.at_once(min(CHUNK, self.real_batch, max(problem.sizes))) / 2  # nothing is kept of them
        return self.with_images_mb(problem, (made + real) * self.activation_mb(problem)) + 2 * pool

    @abstractmethod
    def statistic_size(self, embedding_size: int) -> int:
        """How many numbers :meth:`statistic` gives for an image."""

    @abstractmethod
    def statistic(self, embedded: Tensor, key: Key) -> Tensor:
        """What is averaged over images: (n, embedding_size) → (n, statistic_size).

        Draw from ``key``, which belongs to the network, so that both sides get the same.
        """

    @abstractmethod
    def distance(self, made: Tensor, real: Tensor) -> Tensor:
        """How far the mean over synthetic images is from that over real ones, a scalar."""

    def setup(self, problem: Problem, key: Key) -> State:
        state = State(self.first_images(problem, key), problem.labels)
        if self.networks:
            size = self.statistic_size(self.network(problem).embedding_size)
            state.memory["targets"] = torch.zeros(self.networks, problem.classes, size, device=problem.device)
            state.memory["known"] = torch.zeros(self.networks, problem.classes, dtype=torch.bool)
        return state

    def loss(self, state: State, problem: Problem, classes: Sequence[int], key: Key) -> Tensor:
        slot = state.step % self.networks if self.networks else state.step
        here = key.child("network", slot)
        network = self.network(problem)
        parameters = problem.parameters(network, here)
        changes = [self.change(problem, here.child("augment", label)) for label in classes]
        made = [change(state.images[problem.made(label)]) for label, change in zip(classes, changes, strict=True)]
        # One forward for all classes; normalisation is per image, so they do not mix.
        embedded = self.embed(network, parameters, torch.cat(made), problem.images_at_once)
        seen = self.statistic(embedded, here.child("statistic")).split([len(m) for m in made])
        total = state.images.new_zeros(())
        for label, change, own in zip(classes, changes, seen, strict=True):
            target = self._target(state, problem, label, slot, network, parameters, change, here)
            total = total + self.distance(own.mean(0), target)
        return total

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
        """Mean statistic of real images of a class, (statistic_size,)."""
        if self.networks and state.memory["known"][slot, label]:
            return state.memory["targets"][slot, label]
        rows = problem.draw(label, self.real_batch, key.child("real", label))
        with torch.no_grad():
            total = state.images.new_zeros(())
            for chunk in rows.split(problem.at_once(CHUNK)):
                embedded = self.embed(network, parameters, change(problem.of_class(label, chunk)))
                total = total + self.statistic(embedded, key.child("statistic")).sum(0)
            target = total / len(rows)
        if self.networks:
            state.memory["targets"][slot, label] = target
            state.memory["known"][slot, label] = True
        return target
