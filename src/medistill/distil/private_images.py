"""Real images that answer once, with noise: the guard of a distillation that is differentially private.

What is released is a sum over units (images, or patients) of what each contributes, cut to a length that does not
depend on the data, plus Gaussian noise. All that a method does with it afterwards is post-processing and costs
nothing (Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014, proposition 2.1). Neighbouring
training sets differ by one unit that is there or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medistill.config import PrivacyConfig
from medistill.data.image import Shape
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.distil.real_images import CHUNK, Advance, RealImages, Rows
from medistill.privacy.noise import secret_normal

Unit = Literal["image", "patient"]

CENTRE_CLIP = 1.7
"""Where embeddings are cut from which the mean of all is computed, in those of generated images: as long as real ones
of four modalities, measured from generated ones, are in the median (1.4 to 1.75)."""

ROUNDING = 1 - 1e-5
"""Contributions are cut a little shorter than they may be, so that rounding makes none longer."""


@dataclass(frozen=True)
class Mechanism:
    """How answers are made private.

    Args:
        unit: whose presence is hidden.
        noise_multiplier: standard deviation of the noise, as a multiple of the sensitivity.
        count_share: w: beside its embedding, at most 1 long, each unit contributes the number w, from which the
            number of units is estimated.
        clip: longest embedding that counts in full, as a multiple of that of generated images.
        centre_share: part of the budget that pays for the mean of all units, from which the embeddings of each
            stratum are measured; 0: from that of generated images, and nothing is paid.
    """

    unit: Unit
    noise_multiplier: float
    count_share: float = 0.2
    clip: float = 1.0
    centre_share: float = 0.0

    @property
    def sensitivity(self) -> float:
        """Length of the longest contribution, √(1 + w²)."""
        return float(np.hypot(1.0, self.count_share))

    @property
    def multipliers(self) -> tuple[float, float]:
        """Noise of the mean of all units and of the strata's sums; together they tell as much as one release with
        ``noise_multiplier``, as 1/σ² add up (Dong, Roth, Su, "Gaussian Differential Privacy", 2022, corollary 3.3).
        """
        sigma, share = self.noise_multiplier, self.centre_share
        return sigma / float(np.sqrt(share)) if share else float("inf"), sigma / float(np.sqrt(1 - share))


@dataclass(frozen=True)
class Release:
    """What is known of private images.

    Args:
        means: noisy mean of a statistic over each stratum, (strata, d).
        counts: noisy number of units in each stratum, (strata,), at least 1.
    """

    means: Tensor
    counts: Tensor


@dataclass
class _Vault:
    """The images, until they have answered."""

    held: RealImages | None
    patients: Rows | None


class PrivateRealImages(RealImages):
    """Real images that answer one query, :meth:`release`, once, and are gone afterwards.

    Args:
        images: what they are; nobody else may hold them. Their channels and lengths in space are public.
        patients: (n,) number of the patient of each, where these are known.
        mechanism: how the answer is made private.

    Raises:
        ValueError: patients are to be hidden, and are not known.
    """

    def __init__(self, images: RealImages, patients: Rows | None, mechanism: Mechanism) -> None:
        if mechanism.unit == "patient" and patients is None:
            raise ValueError("patients are not known")
        self.task, self.normalisation, self.device = images.task, images.normalisation, images.device
        self.mechanism = mechanism
        self._public: tuple[Shape, int] = images.shape, images.channels
        self._vault = _Vault(images, patients)
        self._allowed, self._micro_batch_size, self._workers = None, None, images.workers

    @property
    def per_stratum(self) -> tuple[int, ...]:
        """How many go through a network together; how many there are is private."""
        return (CHUNK,) * len(self.task.strata)

    @property
    def serving_order(self) -> list[int]:
        """Strata in their order; by their sizes would tell of these."""
        return list(range(len(self.task.strata)))

    @property
    def channels(self) -> int:
        return self._public[1]

    @property
    def shape(self) -> Shape:
        return self._public[0]

    def _require(self, query: object) -> None:
        raise TypeError(f"private images answer no '{query}', only one release with noise")

    @property
    def looks(self) -> int:
        """How often a release looks at an image of a stratum, all together, to tell how long it takes; private."""
        once = 0 if self._vault.held is None else sum(self._vault.held.per_stratum)
        return once * (2 if self.mechanism.centre_share else 1)

    def close(self) -> None:
        """Forget the images: of what was released before, all else follows."""
        self._vault.held = self._vault.patients = None

    def release(
        self,
        statistic: Callable[[Tensor, int], Tensor],
        size: int,
        length: float,
        origin: Tensor | None = None,
        advance: Advance = lambda n: None,
    ) -> Release:
        """Noisy means of a statistic over the strata, and noisy counts; the images are forgotten then.

        With v what the statistic of an image differs by from a centre, divided by the clip and cut to length 1, a
        unit u of m images, each in k of the strata, contributes to stratum s the vector ``Σ (v, w) / (m √k)`` over
        its images there: altogether at most ``√(1 + w²)`` long, whatever the images are. To the sum over units noise
        of σ times that is added, once.

        Real images differ from generated ones all in the same way, so that most of what is cut off would be that, and
        most of what is left. So the centre is a noisy mean of all units, for a share of the budget: its sum, of
        ``Σ (v, w) / (m k)`` over images and their strata, measured from ``origin`` and cut at
        :data:`CENTRE_CLIP` times the length, is no longer either.

        Args:
            statistic: of normalised images (n, c, *spatial) of a stratum, (n, size).
            size: numbers that it gives for an image.
            length: its usual length from ``origin``; must not depend on the images.
            origin: where it usually lies, (size,); must not depend on the images. None: 0.
            advance: told how many images were seen.

        Raises:
            TypeError: they were asked before.
        """
        if self._vault.held is None:
            raise TypeError("private images answer once, and have answered")
        images = self._vault.held.queried_by(("total",)).worked_by(self._workers)
        images, patients = images.in_micro_batches(self._micro_batch_size), self._vault.patients
        share, (first, second) = self.mechanism.count_share, self.mechanism.multipliers
        centre = torch.zeros(size) if origin is None else origin.cpu()

        def sums(clip: float, weights: Tensor) -> Tensor:
            here = centre.to(self.device)
            total = torch.zeros(len(self.task.strata), size + 1, dtype=torch.float64)
            for stratum in range(len(total)):

                def contribution(x: Tensor, stratum: int = stratum) -> Tensor:
                    v = self._cut((statistic(x, stratum) - here).double() / clip)
                    return torch.cat([v, v.new_full((len(v), 1), ROUNDING * share)], 1)

                answer = images.total(contribution, stratum, lambda rows: weights[rows], advance)
                total[stratum] += answer.value.cpu()
            return total

        try:
            weights = self._weights(images, patients)
            if self.mechanism.centre_share:
                strata_of = torch.from_numpy(np.maximum(images.strata_of_each, 1)).double()
                whole = sums(CENTRE_CLIP * length, weights / strata_of.sqrt()).sum(0, keepdim=True)
                centre = centre + self._centre(self._noisy(whole, first)[0], CENTRE_CLIP * length).to(centre)
            clip = self.mechanism.clip * length
            total = self._noisy(sums(clip, weights), second)
        finally:
            self.close()
        counts = (total[:, -1] / share).clamp(min=1.0)
        means = centre + total[:, :-1] / counts[:, None] * clip
        return Release(means.float().to(self.device), counts.float())

    def _centre(self, total: Tensor, clip: float) -> Tensor:
        """What the mean of all units lies from the origin, (size,), as far as its noise lets it be told: the noisy
        mean, shorter by the share that noise of that loudness has in its squared length (as James, Stein, "Estimation
        with Quadratic Loss", 1961).
        """
        count = (total[-1] / self.mechanism.count_share).clamp(min=1.0)
        mean = total[:-1] / count * clip
        noise = self.mechanism.multipliers[0] * self.mechanism.sensitivity * clip / count
        return mean * (1 - len(mean) * noise**2 / mean.square().sum()).clamp(min=0.0)

    def _noisy(self, total: Tensor, multiplier: float) -> Tensor:
        return total + multiplier * self.mechanism.sensitivity * self._noise(*total.shape)

    def _cut(self, vectors: Tensor) -> Tensor:
        """Vectors (n, d) of length 1 at most, those that were longer cut."""
        return vectors * (ROUNDING / vectors.norm(dim=1, keepdim=True).clamp(min=ROUNDING))

    def _noise(self, *shape: int) -> Tensor:
        return torch.from_numpy(secret_normal(shape))

    def _weights(self, images: RealImages, patients: Rows | None) -> Tensor:
        """What each image's contribution to each of its strata is multiplied by, (n,): 1 / (m √k)."""
        strata_of = np.maximum(images.strata_of_each, 1)
        together = np.ones(len(strata_of))
        if self.mechanism.unit == "patient" and patients is not None:
            together = np.bincount(patients)[patients].astype(float)
        return torch.from_numpy(1 / (together * np.sqrt(strata_of)))


def spent_as(config: PrivacyConfig, unit: Unit, multiplier: float) -> Mechanism:
    """The mechanism that spends a budget as the settings say."""
    return Mechanism(unit, multiplier, config.count_share, config.clip, config.centre_share)


def patient_numbers(patients: npt.NDArray[np.str_] | None) -> Rows | None:
    """A number for the patient of each image, the same where the name is."""
    return None if patients is None else np.unique(patients, return_inverse=True)[1]


GENERATED = 256
"""Generated images from which is learned how long embeddings are."""


def generated_images(channels: int, shape: Shape) -> Tensor:
    """Images that look medical and are of nobody: phantoms of every kind of lesion from three scanners.

    What is to be known before real images are asked, as how long embeddings are, is learned from them.

    Returns:
        (n, channels, *shape) ``uint8``.
    """
    depth = shape[0] if len(shape) == 3 else 0
    pixels = []
    for site in ("a", "b", "c"):
        spec = Phantom(
            classes=8, images=GENERATED // 3, size=shape[-2], width=shape[-1], colour=channels == 3 and not depth,
            site=site, depth=depth,
        )  # fmt: skip
        pixels.append(make_phantom(spec).train.images)
    return torch.from_numpy(np.concatenate(pixels)).expand(-1, channels, *shape)
