"""Stored pixels, drawn from again and again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medistill.aliases import Pixels
from medistill.data.arrays import release

RESIDENT = 0.5
"""Share of a GPU's free memory that images may take to be kept there as they are; larger sets are sent in parts."""


class PixelBank:
    """Pixels that are drawn from again and again; a GPU gets them once, not at each draw.

    Args:
        array: (n, c, *spatial) ``uint8`` or ``uint16``; may lie in a file.
        device: where the draws are wanted.
    """

    def __init__(self, array: Pixels, device: torch.device) -> None:
        self.array, self.device = array, device
        self.resident: Tensor | None = None
        if device.type != "cpu" and _fits(array.nbytes, device):
            self.resident = _tensor(np.ascontiguousarray(array)).to(device)
            release(array)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images of a slice, or of row numbers on the CPU, on the device; ``int32`` of 16 bits, ``uint8`` of 8."""
        if self.resident is not None:
            return self.resident[rows if isinstance(rows, slice) else rows.to(self.device)]
        images = _tensor(self.array[rows if isinstance(rows, slice) else rows.numpy()]).to(self.device)
        release(self.array)
        return images


def _tensor(pixels: Pixels) -> Tensor:
    """torch computes little with ``uint16``."""
    return torch.from_numpy(pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32))


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size <= RESIDENT * torch.cuda.mem_get_info(device)[0]
