"""What methods share that look at images through ConvNets: the network, the augmentation, the first images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medistill.augment import Augmentation, siamese
from medistill.data.image import Shape
from medistill.distil.method import IMAGE_COPIES, LearnedMethod, different_images
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Query
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.nets.zoo import width_for
from medistill.runtime import device, has_bfloat16

COPIES_INSIDE = 4
"""Of the synthetic images, float32, while they are in a network (measured at 224 pixels)."""

CHUNK_COPIES, BATCH_COPIES = 9, 5
"""Of real images, float32, on their way into a network, with what memory's blocks waste: of a chunk that is
normalised, augmented and cut into patches, and of a batch that goes on in parts (measured at 128 and 224 pixels)."""

Start = Literal["noise", "real"]


def in_parts(compute: Callable[[Tensor], Tensor], images: Tensor, at_once: int) -> Tensor:
    """``compute(images)``, so many images at a time, where each image's result is its own, (n, ...).

    With several parts no part's inner values are kept for the gradient: they are computed again when it is asked for.
    """
    if len(images) <= at_once:
        return compute(images)
    parts = images.split(at_once)
    if not torch.is_grad_enabled():
        return torch.cat([compute(part) for part in parts])
    kept = [checkpoint(compute, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(kept)


def in_bfloat16(parameters: Parameters) -> Parameters:
    """The same parameters with eight bits of precision."""
    return {name: parameter.bfloat16() for name, parameter in parameters.items()}


class NetworkMethod(LearnedMethod):
    """Base of methods that compare what ConvNets make of real and of synthetic images."""

    filters: int = Field(128, ge=1, le=4096, description="filters per convolution; of volumes half as many")
    depth: int | None = Field(None, ge=1, le=10, description="blocks of the network; by image size if not given")
    stem: int | None = Field(
        None,
        ge=1,
        le=64,
        description="pixels a side of the patches that the network sees; if not given 1, from 48 pixels on so many "
        "that about 32 patches are left",
    )
    augment: bool = Field(True, description="siamese augmentation")
    start: Start = Field("noise", description="first images: noise, or real ones, which can stay recognisable")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="in which images are embedded, or real images' gradients computed and networks trained; "
        "auto: bfloat16 on a GPU that computes in it",
    )

    def for_this_machine(self) -> Self:
        if self.precision != "auto":
            return self
        # A CPU's compiled layers are as fast in float32 as its bfloat16 is, and give the same numbers on every one.
        on_gpu = device().type == "cuda" and has_bfloat16()
        return self.model_copy(update={"precision": "bfloat16" if on_gpu else "float32"})

    def embed(self, network: ConvNet, parameters: Parameters, images: Tensor, at_once: int | None = None) -> Tensor:
        """Embeddings (n, d), computed in the precision asked for and given in that of the images, so many at once."""
        return self._computed(network.embed, parameters, images, at_once)

    def logits(self, network: ConvNet, parameters: Parameters, images: Tensor, at_once: int | None = None) -> Tensor:
        """Logits (n, outputs), computed and given like :meth:`embed`'s embeddings."""
        return self._computed(network.logits, parameters, images, at_once)

    def _computed(
        self,
        compute: Callable[[Parameters, Tensor], Tensor],
        parameters: Parameters,
        images: Tensor,
        at_once: int | None,
    ) -> Tensor:
        def of(part: Tensor) -> Tensor:
            if self.precision != "bfloat16":
                return compute(parameters, part)
            return compute(in_bfloat16(parameters), part.bfloat16()).to(part.dtype)

        return in_parts(of, images, at_once or len(images))

    @property
    def queries(self) -> tuple[Query, ...]:
        return (*self.info.queries, "draw") if self.start == "real" else self.info.queries

    @property
    def starts_from_real_images(self) -> bool:
        return self.start == "real"

    def first_images(self, problem: DistillationProblem, key: Key) -> Tensor:
        """The images before the first step, as ``start`` says, at the size that networks see."""
        here = key.child("start")
        if self.start == "noise":
            return problem.noise(here)

        def choose(stratum: int, count: int) -> Tensor:
            generator = here.child("class", stratum).generator()
            return torch.randperm(problem.real_per_stratum[stratum], generator=generator)[:count]

        return different_images(problem, self.real(problem), choose).images

    def with_images_mb(self, problem: DistillationProblem, inside_mb: float, pieces: int = 1) -> float:
        """Megabytes of the synthetic images and of what is in the network, by whichever is more: fewer copies of
        the images are there while they are in the network than before and after, but each of the pieces that are
        computed at once has a gradient of its own.
        """
        images = self.image_mb(problem)
        return max(IMAGE_COPIES * images, (COPIES_INSIDE + pieces - 1) * images + inside_mb)

    def activation_mb(self, problem: DistillationProblem) -> float:
        """Megabytes that an image takes in a network where the problem is, in the precision asked for."""
        return self.network(problem).activation_mb_on(problem.device, self.for_this_machine().precision)

    def real_mb(self, problem: DistillationProblem) -> float:
        """Megabytes that a real image takes of which nothing is kept, on its way into a network and within it."""
        return self.activation_mb(problem) / 2 + CHUNK_COPIES * self.network(problem).input_mb

    def batch_mb(self, problem: DistillationProblem) -> float:
        """Megabytes that an image of a batch of real ones takes, which goes through a network in parts."""
        return BATCH_COPIES * self.network(problem).input_mb

    def network(self, problem: DistillationProblem) -> ConvNet:
        """The network's shape for these images."""
        return self.network_for(problem.channels, problem.shape, problem.outputs)

    def network_for(self, channels: int, shape: Shape, outputs: int) -> ConvNet:
        """The network's shape for images of these channels and lengths, and so many outputs."""
        return ConvNet(channels, shape, outputs, width_for(shape, self.filters), self.depth or 0, self.stem or 0)

    def sample_augmentation(self, problem: DistillationProblem, key: Key) -> Augmentation:
        """An augmentation drawn from ``key``, for both sides; none where ``augment`` is off."""
        return siamese(key.generator(), problem.normalisation.flips) if self.augment else lambda x: x
