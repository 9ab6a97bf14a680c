"""What computes, in words."""

from __future__ import annotations

import torch

from medistill.nets import kernels
from medistill.runtime import device, usable_cores


def device_name() -> str:
    """What computes: "cpu" with its number of threads and whether layers are compiled, or the GPU's name."""
    if device().type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device())})"
    compiled = "" if kernels.library() is None else ", compiled layers"
    return f"cpu ({usable_cores()} threads{compiled})"
