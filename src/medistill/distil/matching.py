"""Distances that methods minimise: pure functions of tensors."""

from __future__ import annotations

from torch import Tensor


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distance of two vectors (d,), a scalar."""
    return (first - second).square().sum()
