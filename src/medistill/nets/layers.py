"""Layers of a ConvNet: compiled where that pays, else torch's, each with its gradient."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medistill.nets import blocks, kernels


def convolution_block(images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """:func:`convolution`, then :func:`medistill.nets.blocks.norm_relu_pool`, (n, filters, h / 2, w / 2).

    Where both are compiled they are one layer: each layer is Python code forward and backward, which threads take
    turns at.
    """
    if _compiled(images, weight, bias, scale, shift):
        pooled: Tensor = _Block.apply(images, weight, bias, scale, shift)[0]
        return pooled
    return blocks.norm_relu_pool(convolution(images, weight, bias), scale, shift)


def convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3×3 convolution with a border of zeros of images (n, c, h, w), (n, filters, h, w).

    Gradients may be differentiated again.
    """
    if _compiled(images, weight, bias):
        return _Convolution.apply(images, weight, bias)
    return functional.conv2d(images, weight, bias, padding=1)


def _compiled(images: Tensor, weight: Tensor, *by_filter: Tensor) -> bool:
    """Whether a layer with a 3×3 kernel and further numbers for each filter is computed by the kernels here."""
    channels = images.shape[1]
    fits = weight.shape[1:] == (channels, 3, 3) and all(one.shape == weight.shape[:1] for one in by_filter)
    return fits and (channels <= 4 or kernels.tiled(images.shape)) and kernels.computed(images, weight, *by_filter)


def _convolved(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compiled, but for the convolution of few channels, which torch does well."""
    if kernels.tiled(images.shape):
        return kernels.convolution(images, weight, bias)
    return functional.conv2d(images, weight, bias, padding=1)


def _as_forward() -> AbstractContextManager[object]:
    """Without autocast, as it was forward."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _by_given(images: Tensor, weight: Tensor, coming: Tensor, asked: list[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of a convolution by images, weight and bias, those that are asked for."""
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


class _Block(torch.autograd.Function):
    """What is between its two halves is given out, too, so that a gradient of its gradient finds the way back."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        between = _convolved(images, weight, bias)
        pooled, mean, root = kernels.norm_relu_pool(between, scale, shift, blocks.EPSILON)
        ctx.save_for_backward(images, weight, between, scale, shift, mean, root)
        ctx.set_materialize_grads(False)
        return pooled, between

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        images, weight, *kept = ctx.saved_tensors
        coming, further = gradients
        with _as_forward():
            nothing: tuple[Tensor | None, ...] = (None, None, None)
            by_norm = nothing if coming is None else blocks.compiled_gradient(kept, coming)
            by_between, by_scale, by_shift = by_norm
            if further is not None:
                by_between = further if by_between is None else by_between + further
            asked = list(ctx.needs_input_grad[:3])
            if by_between is None or not any(asked):
                return None, None, None, by_scale, by_shift
            return *_by_given(images, weight, by_between, asked), by_scale, by_shift


class _Convolution(torch.autograd.Function):
    """The convolution alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return _convolved(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        with _as_forward():
            return _by_given(images, weight, gradients[0], list(ctx.needs_input_grad))


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
        with _as_forward():
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
        with _as_forward():
            return _ByImages.apply(coming, of) if asked[0] else None, _without_bias(images, of) if asked[1] else None


def _without_bias(images: Tensor, weight: Tensor) -> Tensor:
    return _Convolution.apply(images, weight, weight.new_zeros(len(weight)))
