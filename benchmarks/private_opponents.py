"""Published ways to differentially private images, as plain as can be, to stand beside ``distill --epsilon``.

Both ask the same guard for one release of noisy means of random Fourier features of pixels, whose length is 1:

- ``kernel-mean`` moves images until the means of their features are those that were released,
- ``dp-merf`` trains a generator to do so and draws the images from it (Harder, Adamczewski, Park, "DP-MERF:
  Differentially Private Mean Embeddings with Random Features for Practical Privacy-Preserving Data Generation",
  AISTATS 2021).

Import this file, then both are methods like others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from medistill.distil.matching import squared_distance
from medistill.distil.method import LearnedMethod, Method, MethodInfo, Observed, State, register
from medistill.distil.optimiser import Optimiser
from medistill.distil.private_images import PrivateRealImages, Release, generated_images
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import Advance
from medistill.keys import Key


class PixelFeatures(Method):
    """What both share: random Fourier features of pixels, whose inner product is nearly a Gaussian kernel (Rahimi,
    Recht, NeurIPS 2007), and one release of their means.
    """

    frequencies: int = Field(2500, ge=1, description="cosines, and as many sines")

    def features(self, images: Tensor, frequencies: Tensor) -> Tensor:
        """(n, c, h, w) → (n, 2 × frequencies), of length 1."""
        phases = images.flatten(1) @ frequencies
        return torch.cat([phases.cos(), phases.sin()], 1) / math.sqrt(self.frequencies)

    def release(
        self, state: State, problem: DistillationProblem, images: PrivateRealImages, key: Key, advance: Advance
    ) -> Release:
        public = problem.normalisation.normalise(generated_images(problem.channels, problem.shape)).flatten(1)
        distances = torch.pdist(public[:100])
        pixels = public.shape[1]
        drawn = torch.randn(pixels, self.frequencies, generator=key.child("frequencies").generator())
        frequencies = drawn / distances.median()  # the median heuristic, on images of nobody
        released = images.release(
            lambda x, stratum: self.features(x, frequencies), 2 * self.frequencies, 1.0, advance=advance
        )
        state.buffers |= {"means": released.means, "counts": released.counts, "clip": torch.tensor(1.0)}
        state.buffers["frequencies"] = frequencies
        return released


@register
class KernelMean(PixelFeatures, LearnedMethod):
    """Images whose mean features are those that were released."""

    iterations: int | None = Field(1000, ge=1, description="steps on the images")

    info = MethodInfo(
        name="kernel-mean", title="Kernel mean matching of pixels", version=1, kind="distillation", cost="minutes",
        bibtex="", queries=("mean",), private=True,
    )  # fmt: skip

    def optimiser(self, problem: DistillationProblem) -> Optimiser:
        return Optimiser("adam", 0.05, schedule="cosine")

    def loss(
        self, state: State, observed: Observed, problem: DistillationProblem, strata: Sequence[int], key: Key
    ) -> Tensor:
        total = state.images.new_zeros(())
        for stratum in strata:
            found = self.features(state.images[problem.synthetic(stratum)], state.buffers["frequencies"])
            total = total + squared_distance(found.mean(0), state.buffers["means"][stratum])
        return 1000 * total


class Generator(nn.Module):
    """From noise and a class to images in [0, 1], as in DP-MERF's code: two dense layers, two convolutions."""

    def __init__(self, classes: int, channels: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.small = (-(-side[0] // 4), -(-side[1] // 4))
        self.side = side
        self.dense = nn.Sequential(
            nn.Linear(CODE + classes, 200), nn.BatchNorm1d(200), nn.ReLU(),
            nn.Linear(200, 16 * math.prod(self.small)), nn.ReLU(),
        )  # fmt: skip
        self.conv = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, channels, 5, padding=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, code: Tensor) -> Tensor:
        small = self.dense(code).view(-1, 16, *self.small)
        return self.conv(small)[..., : self.side[0], : self.side[1]]


CODE = 5
BATCH = 500
"""Images that the generator makes in a step, as many of each class."""


@register
class DPMERF(PixelFeatures):
    """A generator trained on what was released; the images are what it draws."""

    updates: int = Field(1000, ge=1, description="steps of the generator; published: about 600")
    rate: float = Field(0.01, gt=0, description="its learning rate")

    info = MethodInfo(
        name="dp-merf", title="DP-MERF", version=1, kind="distillation", cost="minutes",
        bibtex="@inproceedings{harder2021dpmerf, title={DP-MERF}, author={Harder, Frederik and Adamczewski, Kamil "
        "and Park, Mijung}, booktitle={AISTATS}, year={2021}}",
        queries=("mean",), private=True, dimensions=(2,),
    )  # fmt: skip

    def release(
        self, state: State, problem: DistillationProblem, images: PrivateRealImages, key: Key, advance: Advance
    ) -> Release:
        released = super().release(state, problem, images, key, advance)
        frequencies = state.buffers.pop("frequencies")
        strata, draw = problem.strata, key.child("generator").generator()
        with torch.random.fork_rng():
            torch.manual_seed(key.child("weights").integer())
            generator = Generator(strata, problem.channels, problem.shape)
        low, high = problem.bounds

        def drawn(of: Tensor) -> Tensor:
            code = torch.randn(len(of), CODE, generator=draw)
            made = generator(torch.cat([code, nn.functional.one_hot(of, strata).float()], 1))
            return low + made * (high - low)

        optimiser = torch.optim.Adam(generator.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.updates)
        own = BATCH // strata
        each = torch.arange(strata).repeat_interleave(own)
        with torch.enable_grad():
            for _ in range(self.updates):
                found = self.features(drawn(each), frequencies).view(strata, own, -1).mean(1)
                loss = (found - released.means).square().sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            state.images = drawn(problem.stratum_of)
        return released
