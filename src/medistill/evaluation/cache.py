"""Trained networks' predictions, kept by what determines them, so that no arm is trained twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from medistill.data.arrays import feed
from medistill.data.preprocess import Part
from medistill.files import read_cached, write_cached
from medistill.types import Probabilities


@dataclass(frozen=True)
class Run:
    """What is kept of one trained network.

    Args:
        probabilities: of the test images, (n, classes).
        curve: (points, 3): step, training images seen, balanced accuracy on validation images.
    """

    probabilities: Probabilities
    curve: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def part_digest(part: Part) -> str:
    """Content of a part: pixels and labels."""
    digest = hashlib.sha256(f"{part.pixels.shape}{part.labels.shape}".encode())
    feed(digest, part.pixels)
    digest.update(np.ascontiguousarray(part.labels).data)
    if part.soft_labels is not None:
        digest.update(np.ascontiguousarray(part.soft_labels).data)
    return digest.hexdigest()


def read(identity: str) -> Run | None:
    """The run of that identity, or None."""
    tensors = read_cached("runs", identity)
    if tensors is None or not {"probabilities", "curve"} <= set(tensors):
        return None
    return Run(tensors["probabilities"].numpy(), tensors["curve"].numpy())


def write(identity: str, run: Run) -> None:
    """Keep a run."""
    import torch

    write_cached(
        "runs",
        identity,
        {"probabilities": torch.from_numpy(run.probabilities), "curve": torch.from_numpy(run.curve)},
    )
