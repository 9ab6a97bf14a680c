"""Trained networks' predictions, kept by what determines them, so that no arm is trained twice."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from medistill.data.preprocess import Part
from medistill.errors import OutputError
from medistill.files import user_cache, write_atomically
from medistill.nets.convnet import Parameters
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
    digest.update(np.ascontiguousarray(part.pixels).data)
    digest.update(np.ascontiguousarray(part.labels).data)
    if part.soft_labels is not None:
        digest.update(np.ascontiguousarray(part.soft_labels).data)
    return digest.hexdigest()


def read(identity: str) -> Run | None:
    """The run of that identity, or None; a damaged entry counts as none."""
    try:
        arrays = load((user_cache() / "runs" / f"{identity}.safetensors").read_bytes())
        return Run(arrays["probabilities"], arrays["curve"])
    except (OSError, SafetensorError, KeyError):
        return None


def write(identity: str, run: Run) -> None:
    """Keep a run; where the cache cannot be written, nothing is kept."""
    content = save({"probabilities": run.probabilities, "curve": run.curve})
    try:
        write_atomically(user_cache() / "runs" / f"{identity}.safetensors", content)
    except OutputError:
        return


def read_network(identity: str) -> Parameters | None:
    """A trained network's parameters, or None; a damaged entry counts as none."""
    from safetensors.torch import load as load_tensors

    try:
        tensors = load_tensors((user_cache() / "networks" / f"{identity}.safetensors").read_bytes())
    except (OSError, SafetensorError):
        return None
    return {name: tensor.clone() for name, tensor in tensors.items()}  # aligned like one that was just trained


def write_network(identity: str, parameters: Parameters) -> None:
    """Keep a trained network; where the cache cannot be written, nothing is kept."""
    from safetensors.torch import save as save_tensors

    with contextlib.suppress(OutputError):
        write_atomically(user_cache() / "networks" / f"{identity}.safetensors", save_tensors(parameters))
