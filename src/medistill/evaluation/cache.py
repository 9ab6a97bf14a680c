"""Trained networks' predictions, kept by what determines them, so that no arm is trained twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medistill.aliases import Probabilities
from medistill.files import read_cached, write_cached


@dataclass(frozen=True)
class TrainedRun:
    """What is kept of one trained network.

    Args:
        probabilities: of the test images, (n, outputs).
        curve: (points, 3): step, training images seen, the task's primary metric on validation images.
    """

    probabilities: Probabilities
    curve: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def read_run(identity: str) -> TrainedRun | None:
    """The run of that identity, or None."""
    tensors = read_cached("runs", identity)
    if tensors is None or not {"probabilities", "curve"} <= set(tensors):
        return None
    return TrainedRun(tensors["probabilities"].numpy(), tensors["curve"].numpy())


def write_run(identity: str, run: TrainedRun) -> None:
    """Keep a run."""
    import torch

    write_cached(
        "runs",
        identity,
        {"probabilities": torch.from_numpy(run.probabilities), "curve": torch.from_numpy(run.curve)},
    )
