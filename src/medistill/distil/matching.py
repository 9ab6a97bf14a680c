"""Distances that methods minimise: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distance of two vectors (d,), a scalar."""
    return (first - second).square().sum()


def gradient_distance(first: Sequence[Tensor], second: Sequence[Tensor], eps: float = 1e-6) -> Tensor:
    """Sum over layers and output rows of 1 − cosine similarity (Zhao, Mopuri, Bilen, ICLR 2021, equation 10).

    Args:
        first, second: gradients of the same weights, each (outputs, ...).
        eps: added to the product of the norms.
    """
    total = first[0].new_zeros(())
    for a, b in zip(first, second, strict=True):
        a, b = a.flatten(1), b.flatten(1)
        total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + eps)).sum()
    return total


def characteristic_distance(first: Tensor, second: Tensor, amplitude: float) -> Tensor:
    """Mean over frequencies of amplitude and phase differences of two characteristic functions.

    With values ``r·exp(i·a)`` and ``s·exp(i·b)`` each frequency gives ``w (r − s)² + (1 − w) 2 r s (1 − cos(a − b))``
    (Wang et al., CVPR 2025, equation 6); at ``w = 1/2`` that is half the squared distance of the two numbers.

    Args:
        first, second: real parts, then imaginary parts, (2 × frequencies,).
        amplitude: the weight w, in [0, 1].
    """
    (x, y), (u, v) = first.chunk(2), second.chunk(2)
    # The root's slope is infinite at zero; a trace inside keeps it finite.
    r, s = (x.square() + y.square() + 1e-12).sqrt(), (u.square() + v.square() + 1e-12).sqrt()
    product = r * s
    phase = 2 * (product - (x * u + y * v))
    return (amplitude * (r - s).square() + (1 - amplitude) * phase).mean()


def ridge_prediction(synthetic: Tensor, targets: Tensor, real: Tensor, ridge: float) -> Tensor:
    """What a kernel ridge regression fitted to synthetic images says of real ones, float64.

    ``K(real, synthetic) (K(synthetic, synthetic) + λ I)⁻¹ targets`` with the linear kernel of the features and
    ``λ = ridge · trace(K) / n`` (Zhou, Nezhadarya, Ba, NeurIPS 2022, equation 2).

    Args:
        synthetic: features of synthetic images, (n, d).
        targets: what the regression should give for them, (n, classes).
        real: features of real images, (m, d).
        ridge: share of the kernel's mean diagonal.

    Returns:
        (m, classes); in double precision, because nearly equal images make the kernel nearly singular.
    """
    synthetic, real, targets = synthetic.double(), real.double(), targets.double()
    kernel = synthetic @ synthetic.T
    damped = kernel + ridge * kernel.diagonal().mean() * torch.eye(
        len(synthetic), dtype=synthetic.dtype, device=synthetic.device
    )
    return real @ synthetic.T @ torch.linalg.solve(damped, targets)
