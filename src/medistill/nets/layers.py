"""A convolution as a layer: compiled where that pays, else torch's, each with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medistill.nets import kernels


def convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3×3 convolution with a border of zeros of images (n, c, h, w), (n, filters, h, w).

    Gradients may be differentiated again.
    """
    channels = images.shape[1]
    fits = weight.shape[1:] == (channels, 3, 3) and bias.shape == weight.shape[:1]
    if fits and (channels <= 4 or kernels.tiled(images.shape)) and kernels.computed(images, weight, bias):
        return _Convolution.apply(images, weight, bias)
    return functional.conv2d(images, weight, bias, padding=1)


class _Convolution(torch.autograd.Function):
    """Compiled, but for the convolution of few channels itself, which torch does well, and for second gradients."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        if kernels.tiled(images.shape):
            return kernels.convolution(images, weight, bias)
        return functional.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        asked = list(ctx.needs_input_grad)
        with torch.autocast("cpu", enabled=False):  # as it was forward
            if torch.is_grad_enabled() or kernels.transformed():
                one = [1, 1]
                return torch.ops.aten.convolution_backward(
                    gradients[0], images, weight, [len(weight)], one, one, one, False, [0, 0], 1, asked
                )
            by_images = kernels.convolution_images(gradients[0], weight) if asked[0] else None
            parameters = asked[1] or asked[2]
            return by_images, *(kernels.convolution_parameters(images, gradients[0]) if parameters else (None, None))
