"""Instance normalisation, ReLU and pooling in one, channels last: what a ConvNet does between convolutions, on a CPU.

In float32 they are compiled (``medistill.nets.kernels``). In bfloat16 nothing is: there torch's convolutions take
images whose channels lie side by side two to four times faster than those in the usual order, which they reorder on
the way in and out; torch's own normalisation of such images is slower by more than that. Here are sums and products
that it does fast in that order: together 1.2 to 1.4 times as fast as its own functions in the usual order (measured
on two cores with AMX, 28 pixels, 64 filters, by ``benchmarks/bench_blocks.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medistill.nets import kernels

EPSILON = 1e-5
"""Added to variances, as torch's normalisations do."""

FAR = 4
"""Times its spread from zero where the mean of a channel is taken off before anything else, lest rounding be felt."""

SMALLEST_SCALE = 0.25
"""Learned scale, as a share of the shift or of one, below which a sum is taken anew that else a division gives."""


def usable(images: Tensor, weight: Tensor) -> bool:
    """Whether :func:`norm_relu_pool` pays after layers like that of this weight, (filters, c, 3, 3): on a CPU
    outside torch's function transforms, in bfloat16 with oneDNN, in float32 where that was compiled.
    """
    return kernels.computed(images, weight) or (
        images.device.type == "cpu"
        and (images.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not kernels.transformed()
    )


def channels_last(images: Tensor) -> Tensor:
    """The same images (n, c, h, w) with the channels of a pixel side by side.

    With one channel torch takes images for being in either order, and its convolutions the slower way.
    """
    n, c, h, w = images.shape
    if c == 1:
        return images.contiguous().as_strided((n, c, h, w), (h * w, 1, w, 1))
    return images.contiguous(memory_format=torch.channels_last)


def norm_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each image normalised, scaled and shifted, negative values cut, 2×2 pixels averaged.

    Args:
        images: (n, c, h, w) of even sides, in any order; in bfloat16 overwritten if their channels come last.
        weight, bias: (c,) scale and shift.

    Returns:
        (n, c, h / 2, w / 2), channels last. Gradients may be differentiated again.
    """
    if weight.shape == bias.shape == images.shape[1:2] and kernels.computed(images, weight, bias):
        return _Compiled.apply(images, weight, bias)
    return _NormReluPool.apply(channels_last(images), weight, bias)


def plain_norm_relu_pool(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same out of torch's own functions."""
    x = functional.group_norm(images, images.shape[1], weight, bias, EPSILON)
    return functional.avg_pool2d(functional.relu(x), 2)


class _Compiled(torch.autograd.Function):
    """In float32: keeps what was given; what is cut is found anew."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        pooled, mean, root = kernels.norm_relu_pool(images, weight, bias, EPSILON)
        ctx.save_for_backward(images, weight, bias, mean, root)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return compiled_gradient(ctx.saved_tensors, gradients[0])


def compiled_gradient(kept: Sequence[Tensor], coming: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by images, weight and bias of what ``kernels.norm_relu_pool`` computed; they may be differentiated
    again where gradients are enabled.

    Args:
        kept: images, weight, bias, and the mean and root that it gave.
        coming: gradient by what was pooled.
    """
    images, weight, bias, mean, root = kept
    if kernels.transformed():
        return _differentiable(images, weight, bias, coming)
    if torch.is_grad_enabled():
        return _CompiledGradient.apply(images, weight, bias, mean, root, coming)
    return kernels.norm_relu_pool_gradient(images, weight, bias, mean, root, coming)


class _CompiledGradient(torch.autograd.Function):
    """The gradient of :class:`_Compiled`, with its own."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*given)
        return kernels.norm_relu_pool_gradient(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, bias, mean, root, coming = ctx.saved_tensors
        if torch.is_grad_enabled() or kernels.transformed():
            return _differentiable_twice(images, weight, bias, coming, gradients)
        second = kernels.norm_relu_pool_second(images, weight, bias, mean, root, coming, *gradients)
        by_images, by_weight, by_coming = second
        return by_images, by_weight, None, None, None, by_coming


class _NormReluPool(torch.autograd.Function):
    """Keeps what was given, what was pooled and what came out; the gradient is written out in :meth:`backward`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = images.permute(0, 2, 3, 1)
        wide = _wide(x.dtype)
        mean, variance = _moments(x)
        if bool((mean.square() > FAR**2 * variance).any()):
            # Normalising takes any number from all pixels, and near their mean few bits are enough. Nobody sees what
            # is changed in place: the layer that it comes from does not need it again.
            x.flatten(2).sub_(_repeated(mean, x))
            mean, variance = _moments(x)
        root = (variance + EPSILON).rsqrt()
        scale = root * weight.to(wide)
        shift, flat = bias.to(wide) - mean * scale, x.flatten(2)
        out = None if any(ctx.needs_input_grad) else flat
        kept = torch.addcmul(_repeated(shift, x), flat, _repeated(scale, x), out=out)
        kept = kept.relu_().view(x.shape)
        pooled = functional.avg_pool2d(kept.permute(0, 3, 1, 2), 2)
        ctx.save_for_backward(images, weight, bias, kept, pooled, mean, root)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, bias, kept, pooled, mean, root = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(images, weight, bias, gradients[0])
        x, wide = images.permute(0, 2, 3, 1), _wide(images.dtype)
        n, height, width, c = x.shape
        coming, scale = gradients[0].permute(0, 2, 3, 1).to(x.dtype), weight.to(wide)
        divisible = bool((scale.abs() >= SMALLEST_SCALE * bias.to(wide).abs().clamp_min(1)).all())
        # The mean of four gives each a quarter; what normalising multiplies by is cheaper here than at full size.
        factor = 0.25 * root * (scale if divisible else 1)
        quarter = (coming * factor[:, None, None, :].to(x.dtype)).unsqueeze(3)
        rows = quarter.expand(n, height // 2, width // 2, 2, c).reshape(n, height // 2, 1, width * c)
        rows = rows.expand(n, height // 2, 2, width * c)
        back = torch.ops.aten.threshold_backward(rows, kept.view(rows.shape), 0).view(x.shape)
        total = _sum(back) / (4 * factor)
        if divisible:
            # Where nothing was cut, what came out of the scaling is what was pooled.
            along = (_sum(coming * pooled.permute(0, 2, 3, 1)) - bias.to(wide) * total) / scale
        else:
            along = (_sum(back * x) / (4 * factor) - mean * total) * root
        by_images = None
        if ctx.needs_input_grad[0]:
            per_pixel = root * scale / (height * width)
            slope = -per_pixel * along * root
            offset = -per_pixel * total - slope * mean
            flat = back.flatten(2)
            if not divisible:
                flat.mul_(_repeated(scale.expand_as(root), x))
            flat.addcmul_(x.flatten(2), _repeated(slope, x)).add_(_repeated(offset, x))
            by_images = back.permute(0, 3, 1, 2)
        return by_images, along.sum(0).to(weight.dtype), total.sum(0).to(bias.dtype)


def _differentiable(images: Tensor, weight: Tensor, bias: Tensor, coming: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: of the plain functions, done once more."""
    asked = [t for t in (images, weight, bias) if t.requires_grad]
    with torch.enable_grad():
        # Torch differentiates its normalisation in the usual order only.
        out = plain_norm_relu_pool(images.contiguous(), weight, bias)
        computed = iter(torch.autograd.grad(out, asked, coming, create_graph=True))
    return tuple(next(computed) if t.requires_grad else None for t in (images, weight, bias))


def _differentiable_twice(
    images: Tensor, weight: Tensor, bias: Tensor, coming: Tensor, of: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients by images, weight and ``coming`` of what :func:`_differentiable` gives times ``of``."""
    with torch.enable_grad():
        # Views, because what comes back may itself depend on the images, and that is not to be counted here.
        given = [t.view_as(t) for t in (images, weight, coming)]
        first = _differentiable(given[0], given[1], bias, given[2])
        pairs = [(f, g) for f, g in zip(first, of, strict=True) if f is not None and f.requires_grad]
        computed = iter(
            torch.autograd.grad(
                [f for f, _ in pairs],
                [t for t in given if t.requires_grad],
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
        )
    by_images, by_weight, by_coming = (next(computed) if t.requires_grad else None for t in (images, weight, coming))
    return by_images, by_weight, None, None, None, by_coming


def _wide(kind: torch.dtype) -> torch.dtype:
    """Of sums and statistics: no fewer than 24 bits."""
    return torch.float32 if kind.itemsize < 4 else kind


def _sum(x: Tensor) -> Tensor:
    """Over the pixels of (n, h, w, c), (n, c) in :func:`_wide`: by rows first, which bounds the rounding."""
    return x.sum(2).to(_wide(x.dtype)).sum(1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the pixels of (n, h, w, c), (n, c) in :func:`_wide`."""
    pixels = x.shape[1] * x.shape[2]
    mean = _sum(x) / pixels
    return mean, (_sum(x * x) / pixels - mean * mean).clamp_min_(0)


def _repeated(values: Tensor, like: Tensor) -> Tensor:
    """(n, c) for every pixel of a row of ``like``, in its precision, (n, 1, w * c): torch likes long rows."""
    n, _, width, c = like.shape
    return values.to(like.dtype)[:, None, None, :].expand(n, 1, width, c).reshape(n, 1, width * c)
