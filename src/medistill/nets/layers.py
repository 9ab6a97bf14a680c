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
    """Compiled, but for the convolution of few channels itself, which torch does well."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        if kernels.tiled(images.shape):
            return kernels.convolution(images, weight, bias)
        return functional.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        asked, coming = list(ctx.needs_input_grad), gradients[0]
        with torch.autocast("cpu", enabled=False):  # as it was forward
            if kernels.transformed():
                one = [1, 1]
                return torch.ops.aten.convolution_backward(
                    coming, images, weight, [len(weight)], one, one, one, False, [0, 0], 1, asked
                )
            if torch.is_grad_enabled():
                return (
                    _ByImages.apply(coming, weight) if asked[0] else None,
                    _ByWeight.apply(images, coming) if asked[1] else None,
                    coming.sum((0, 2, 3)) if asked[2] else None,
                )
            by_images = kernels.convolution_images(coming, weight) if asked[0] else None
            parameters = asked[1] or asked[2]
            return by_images, *(kernels.convolution_parameters(images, coming) if parameters else (None, None))


class _ByImages(torch.autograd.Function):
    """Gradient of a convolution by its images, which is one of the coming gradient by the kernel turned round."""

    @staticmethod
    def forward(ctx: Any, coming: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(coming, weight)
        return kernels.convolution_images(coming, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        coming, weight = ctx.saved_tensors
        asked, of = ctx.needs_input_grad, gradients[0]
        with torch.autocast("cpu", enabled=False):
            return _without_bias(of, weight) if asked[0] else None, _ByWeight.apply(of, coming) if asked[1] else None


class _ByWeight(torch.autograd.Function):
    """Gradient of a convolution by its weight, which is linear in the images and in the coming gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, coming: Tensor) -> Tensor:
        ctx.save_for_backward(images, coming)
        return kernels.convolution_weight(images, coming)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, coming = ctx.saved_tensors
        asked, of = ctx.needs_input_grad, gradients[0]
        with torch.autocast("cpu", enabled=False):
            return _ByImages.apply(coming, of) if asked[0] else None, _without_bias(images, of) if asked[1] else None


def _without_bias(images: Tensor, weight: Tensor) -> Tensor:
    return _Convolution.apply(images, weight, weight.new_zeros(len(weight)))
