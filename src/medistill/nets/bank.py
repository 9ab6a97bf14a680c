"""Stored pixels, drawn from again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medistill.data.arrays import release

RESIDENT = 0.5
"""Share of a GPU's free memory that images may take to be kept there as they are; larger sets are sent in parts."""


class PixelBank:
    """``uint8`` images that are drawn from again and again; a GPU gets them once, not at each draw.

    Args:
        array: (n, c, *spatial) ``uint8``; may lie in a file.
        device: where the draws are wanted.
    """

    def __init__(self, array: npt.NDArray[np.uint8], device: torch.device) -> None:
        self.array, self.device = array, device
        self.resident: Tensor | None = None
        if device.type != "cpu" and _fits(array.nbytes, device):
            self.resident = torch.from_numpy(np.ascontiguousarray(array)).to(device)
            release(array)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """``uint8`` images of a slice, or of row numbers on the CPU, on the device."""
        if self.resident is not None:
            return self.resident[rows if isinstance(rows, slice) else rows.to(self.device)]
        images = torch.from_numpy(self.array[rows if isinstance(rows, slice) else rows.numpy()]).to(self.device)
        release(self.array)
        return images


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size <= RESIDENT * torch.cuda.mem_get_info(device)[0]
