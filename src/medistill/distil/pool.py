"""What distribution-matching methods share: a pool of networks that look at real images once.

Such a method compares a statistic of real and of synthetic embeddings. The real side does
not depend on the synthetic images, so for each network, with the augmentation drawn for it,
it is asked for once and met again and again.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from medistill.augment import Augmentation
from medistill.data.image import Shape
from medistill.distil.method import Observed, State
from medistill.distil.networked import NetworkMethod, in_bfloat16
from medistill.distil.private_images import PrivateRealImages, Release, generated_images
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import CHUNK, Advance
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters

_drawn: dict[tuple[ConvNet, Key, torch.device, bool], Parameters] = {}
"""Parameters of the latest step's network, which all its pieces ask for."""

_drawing = threading.Lock()


class PooledMatching(NetworkMethod):
    """Base of methods that match a mean over images; subclasses say of what, and how it is compared.

    Each stratum is matched alone and their losses are added. Both sides are changed by
    the same siamese augmentation. Real images are asked for means alone.
    """

    iterations: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="steps on the images; if not given 800, beyond 20 images per class fewer, at least 200; half as "
        "many from real first images",
    )
    networks: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="networks in the pool; if not given 100, of volumes 50; 0 makes a new one each step",
    )
    real_batch: int = Field(256, ge=1, le=1_000_000, description="real images per class and network")
    filters: int = Field(64, ge=1, le=4096, description="filters per convolution; of volumes half as many")

    def steps(self, problem: DistillationProblem) -> int:
        """As asked for, or as many as keep the work bounded: a step costs as much as there are images.

        What starts from real images is near its end already.
        """
        steps = max(100, min(400, 8000 // max(problem.synthetic_per_stratum)))
        return self.iterations or steps * (1 if self.starts_from_real_images else 2)

    def pool_size(self, problem: DistillationProblem) -> int:
        """Networks in the pool, as asked for, or so many that each is met several times; 0: a new one each step."""
        return (100 if len(problem.shape) == 2 else 50) if self.networks is None else self.networks

    def released_numbers(self, channels: int, shape: Shape, outputs: int) -> int:
        """How many numbers of each stratum :meth:`release` asks for, of images of these channels and lengths."""
        size = self.statistic_size(self.network_for(channels, shape, outputs).embedding_size)
        return (self.networks or 0) * size

    def kinds_of_steps(self, problem: DistillationProblem, done: int) -> Sequence[tuple[int, int]]:
        """Those that ask real images anew, and those that find answers kept, as a step does when it is repeated."""
        pool, steps = self.pool_size(problem), self.steps(problem)
        asked_before = isinstance(problem.real, PrivateRealImages)
        anew = 0 if asked_before else max(0, min(pool or steps, steps) - done)
        return [(anew, done + 1), (steps - done - anew, done + 1)]

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        network = self.network(problem)
        synthetic = problem.at_once(sum(sorted(problem.synthetic_per_stratum)[-strata:]))
        pool = 4e-6 * self.pool_size(problem) * problem.strata * self.statistic_size(network.embedding_size)
        asked = min(self.real_batch, max(problem.real_per_stratum))
        chunk = problem.at_once(min(CHUNK, asked))
        side = self.side_by_side(problem, strata)
        # Where the work is one piece, its workers take the chunks of a stratum.
        asking = side if side > 1 else min(problem.workers.number, -(-asked // chunk))
        inside = side * synthetic * self.activation_mb(problem) + asking * chunk * self.real_mb(problem)
        return self.with_images_mb(problem, inside, side) + 2 * pool

    @abstractmethod
    def statistic_size(self, embedding_size: int) -> int:
        """How many numbers :meth:`statistic` gives for an image."""

    @abstractmethod
    def statistic(self, embedded: Tensor, key: Key) -> Tensor:
        """What is averaged over images: (n, embedding_size) → (n, statistic_size).

        Draw from ``key``, which belongs to the network, so that both sides get the same.
        """

    @abstractmethod
    def distance(self, synthetic: Tensor, real: Tensor) -> Tensor:
        """How far the mean over synthetic images is from that over real ones, a scalar."""

    def setup(self, problem: DistillationProblem, key: Key) -> State:
        state = State(self.first_images(problem, key), problem.targets)
        if networks := self.pool_size(problem):
            size = self.statistic_size(self.network(problem).embedding_size)
            state.buffers["means"] = torch.zeros(networks, problem.strata, size, device=problem.device)
            state.buffers["known"] = torch.zeros(networks, problem.strata, dtype=torch.bool)
        return state

    def release(
        self, state: State, problem: DistillationProblem, images: PrivateRealImages, key: Key, advance: Advance
    ) -> Release:
        """All networks' statistics of an image are one long vector. What it differs by from a centre is cut as a
        whole to the length that generated images have from theirs, and released once for each stratum.
        """
        networks, network = self.pool_size(problem), self.network(problem)
        if not networks:
            raise ConfigError(
                "0, which asks anew in each step", where="method.networks", allowed="1 or more, asked once"
            )
        keys = [key.child("network", slot) for slot in range(networks)]
        parameters = [problem.parameters(network, here) for here in keys]

        def joint(x: Tensor, stratum: int) -> Tensor:
            found = []
            for here, own in zip(keys, parameters, strict=True):
                embedded = self.embed(network, own, self._augmentation(problem, here, stratum)(x))
                found.append(self.statistic(embedded, here.child("statistic")))
            return torch.cat(found, 1)

        with torch.no_grad():
            chunks = (
                generated_images(problem.channels, problem.shape).to(problem.device).split(problem.at_once(CHUNK))
            )
            known = torch.cat([joint(problem.normalisation.normalise(chunk), 0) for chunk in chunks])
        origin = known.mean(0)
        length = float((known - origin).norm(dim=1).median())
        size = self.statistic_size(network.embedding_size)
        released = images.release(joint, networks * size, length, origin, advance)
        means = released.means.view(problem.strata, networks, size)
        state.buffers["means"] = means.transpose(0, 1).contiguous()
        state.buffers["known"].fill_(True)
        state.buffers |= {"counts": released.counts, "clip": torch.tensor(images.mechanism.clip * length)}
        return released

    def observe(
        self, state: State, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> dict[str, Tensor]:
        """The mean statistic of real images of each stratum, (strata, statistic_size); asked once for each
        network.
        """
        pooled = self.pool_size(problem) > 0
        slot, here = self._network_of(state, problem, key)
        unknown = [s for s in strata if not pooled or not state.buffers["known"][slot, s]]
        means: dict[int, Tensor] = {}
        if unknown:
            network = self.network(problem)
            parameters = self._parameters(problem, network, here)
            for stratum in unknown:
                augment = self._augmentation(problem, here, stratum)

                def statistic(images: Tensor, augment: Augmentation = augment) -> Tensor:
                    return self.statistic(self.embed(network, parameters, augment(images)), here.child("statistic"))

                asked = self.real(problem).mean(statistic, stratum, self.real_batch, here.child("real", stratum))
                means[stratum] = asked.value
                if pooled:
                    state.buffers["means"][slot, stratum] = asked.value
                    state.buffers["known"][slot, stratum] = True
        if pooled:
            return {"means": state.buffers["means"][slot, list(strata)]}
        return {"means": torch.stack([means[stratum] for stratum in strata])}

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        _, here = self._network_of(state, problem, key)
        network = self.network(problem)
        parameters = self._parameters(problem, network, here)
        synthetic = [self._augmentation(problem, here, s)(state.images[problem.synthetic(s)]) for s in strata]
        # One forward for all strata; normalisation is per image, so they do not mix.
        embedded = self.embed(network, parameters, torch.cat(synthetic), problem.micro_batch_size)
        by_stratum = self.statistic(embedded, here.child("statistic")).split([len(images) for images in synthetic])
        total = state.images.new_zeros(())
        for statistics, mean in zip(by_stratum, observed["means"], strict=True):
            total = total + self.distance(statistics.mean(0), mean)
        return total

    def _network_of(self, state: State, problem: DistillationProblem, key: Key) -> tuple[int, Key]:
        """The place in the pool of this step's network, and its key."""
        networks = self.pool_size(problem)
        slot = state.step % networks if networks else state.step
        return slot, key.child("network", slot)

    def _parameters(self, problem: DistillationProblem, network: ConvNet, key: Key) -> Parameters:
        """Those of a step's network, in the precision that it computes in, drawn once for all pieces of the step."""
        bfloat16 = self.precision == "bfloat16"
        wanted = (network, key, problem.device, bfloat16)
        with _drawing:
            if wanted not in _drawn:
                drawn = problem.parameters(network, key)
                _drawn.clear()
                _drawn[wanted] = in_bfloat16(drawn) if bfloat16 else drawn
            return _drawn[wanted]

    def _augmentation(self, problem: DistillationProblem, key: Key, stratum: int) -> Augmentation:
        return self.sample_augmentation(problem, key.child("augment", stratum))
