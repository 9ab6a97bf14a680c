"""From stored pixels to what a network sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medistill.data.arrays import release

RESIDENT = 0.5
"""Share of a GPU's free memory that images may take to be kept there as they are; larger sets are sent in parts."""


class Pixels:
    """``uint8`` images that are drawn from again and again; a GPU gets them once, not at each draw.

    Args:
        array: (n, c, h, w) ``uint8``; may lie in a file.
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
        found = torch.from_numpy(self.array[rows if isinstance(rows, slice) else rows.numpy()]).to(self.device)
        release(self.array)
        return found


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size <= RESIDENT * torch.cuda.mem_get_info(device)[0]


def channelwise(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number for each channel, as (1, c, 1, 1) float32."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(pixel / 255 - mean) / std`` per channel, float32."""
    scale = channelwise(tuple(1 / (255 * s) for s in std), pixels.device)
    shift = channelwise(tuple(-m / s for m, s in zip(mean, std, strict=True)), pixels.device)
    return pixels * scale + shift


def decode(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w) as networks see them, at ``size``: those stored smaller are enlarged bilinearly.

    Storing at 1/f of the side lets the bytes of one image hold f² of them: the multi-formation of
    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022.
    """
    if images.shape[2:] == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def encode(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w) made smaller, to ``size``, each pixel the mean of what it covers."""
    return images if images.shape[2:] == size else functional.adaptive_avg_pool2d(images, size)
