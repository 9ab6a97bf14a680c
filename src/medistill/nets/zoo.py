"""Other networks than the one that images are distilled with, to see whether they train on them too.

Each is a torch module run as a pure function of its tensors, so it trains under the one recipe
like the ConvNet. ResNet-18, DenseNet-121 and the vision transformer are MONAI's.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medistill.data.image import Shape
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters

VERSION = 3
"""Raised whenever one of :data:`BUILDERS` would train to other numbers."""

SMALL_SIDE = 64
"""Under that many pixels a 3×3 convolution takes the place of the 7×7 one that photographs begin with."""


class Network(Protocol):
    """What training and prediction ask of a network."""

    @property
    def buffers(self) -> frozenset[str]:
        """Names of tensors that training changes but gradients do not, as running means."""

    @property
    def activation_mb(self) -> float | None:
        """Megabytes that an image takes in a training step; None where nobody measured it, or where the images of a
        batch change one another's scores in training, so that a batch cannot be divided.
        """

    def parameters(self, key: Key) -> Parameters:
        """New tensors; equal keys give equal ones."""

    def logits(self, parameters: Parameters, images: Tensor, training: bool = False) -> Tensor:
        """What becomes probabilities, (n, outputs), of normalised images (n, c, *spatial)."""


@dataclass(frozen=True)
class ModuleNetwork:
    """A torch module as a pure function of its tensors.

    Args:
        name: of :data:`BUILDERS`.
        channels, shape, outputs: what it sees and says.
    """

    name: str
    channels: int
    shape: Shape
    outputs: int

    @property
    def _module(self) -> nn.Module:
        return _module(self.name, self.channels, self.shape, self.outputs, threading.get_ident())

    @property
    def buffers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._module.named_buffers())

    @property
    def activation_mb(self) -> None:
        return None

    def parameters(self, key: Key) -> Parameters:
        with _drawing():
            torch.default_generator.set_state(key.generator().get_state())
            module = BUILDERS[self.name](self.channels, self.shape, self.outputs)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def logits(self, parameters: Parameters, images: Tensor, training: bool = False) -> Tensor:
        module = self._module.train(training)
        result: Tensor = torch.func.functional_call(module, parameters, (images,))
        return result


_draws = threading.Lock()


@contextmanager
def _drawing() -> Iterator[None]:
    """Modules draw from the generator of all threads, which is put back as it was."""
    with _draws, torch.random.fork_rng(devices=[]):
        yield


@functools.lru_cache(maxsize=64)
def _module(name: str, channels: int, shape: Shape, outputs: int, _thread: int) -> nn.Module:
    """The module's code, of each thread another, as it lends its place to parameters; its own are never used."""
    with _drawing():
        return BUILDERS[name](channels, shape, outputs)


def mlp(channels: int, shape: Shape, outputs: int) -> nn.Module:
    """Two hidden layers of 256 units on the pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * math.prod(shape), 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs),
    )  # fmt: skip


class _Border(nn.Module):
    """Adds zeros, as many as torch's function is told."""

    def __init__(self, border: tuple[int, ...]) -> None:
        super().__init__()
        self.border = border

    def forward(self, images: Tensor) -> Tensor:
        """Larger images."""
        return functional.pad(images, self.border)


class _ChannelsLast(nn.Module):
    """Lays the channels of a pixel side by side, where convolutions and batch norm take less time."""

    def forward(self, images: Tensor) -> Tensor:
        """Equal images."""
        last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        return images.contiguous(memory_format=last)


def convnet_batch_norm(channels: int, shape: Shape, outputs: int) -> nn.Module:
    """The ConvNet of width 64 with batch in place of instance normalisation; of width 32 for volumes."""
    volumes = len(shape) == 3
    width = 32 if volumes else 64
    like = ConvNet(channels, shape, outputs, width)
    first = channels * like.stem ** len(shape)
    convolution = nn.Conv3d if volumes else nn.Conv2d
    norm, pool = (nn.BatchNorm3d, nn.AvgPool3d) if volumes else (nn.BatchNorm2d, nn.AvgPool2d)
    blocks: list[nn.Module] = [_Border(like.padding)]
    if like.stem > 1:
        blocks.append(nn.PixelUnshuffle(like.stem))
    blocks.append(_ChannelsLast())
    for block, fan in enumerate([first, *[width] * (like.convolutions - 1)]):
        stride = 2 if volumes and block == 0 else 1
        blocks += [convolution(fan, width, 3, padding=1, stride=stride), norm(width), nn.ReLU(), pool(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(like.embedding_size, outputs))


class _Padded(nn.Module):
    """Pads images with zeros to at least 32 pixels a side, below which these networks have nothing left to pool."""

    def __init__(self, body: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.body = nn.Sequential(_ChannelsLast(), body)
        self.border = _behind([max(0, 32 - side) for side in shape])

    def forward(self, images: Tensor) -> Tensor:
        """What becomes probabilities, of images (n, c, *spatial)."""
        scores: Tensor = self.body(functional.pad(images, self.border))
        return scores


def _behind(extra: Sequence[int]) -> tuple[int, ...]:
    """Zeros added behind along each axis, as torch wants them: the last axis first."""
    return tuple(n for side in reversed(extra) for n in (0, side))


def resnet18(channels: int, shape: Shape, outputs: int) -> nn.Module:
    """He et al., CVPR 2016."""
    from monai.networks.nets.resnet import resnet18 as build

    stem = 3 if min(shape) < SMALL_SIDE else 7
    body = build(spatial_dims=len(shape), n_input_channels=channels, num_classes=outputs, conv1_t_size=stem)
    return _Padded(body, shape)


def densenet121(channels: int, shape: Shape, outputs: int) -> nn.Module:
    """Huang et al., CVPR 2017."""
    from monai.networks.nets.densenet import DenseNet121

    body = DenseNet121(spatial_dims=len(shape), in_channels=channels, out_channels=outputs)
    if min(shape) < SMALL_SIDE:
        convolution = nn.Conv2d if len(shape) == 2 else nn.Conv3d
        body.features.conv0 = convolution(channels, 64, 3, stride=2, padding=1, bias=False)
    return _Padded(body, shape)


class VisionTransformer(nn.Module):
    """Six layers of 128 numbers, four heads, patches of a seventh of the side (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, channels: int, shape: Shape, outputs: int) -> None:
        from monai.networks.nets.vit import ViT

        super().__init__()
        # Volumes may have few slices: there each side has patches of its own length.
        patch = [max(2, (side if len(shape) == 3 else min(shape)) // 7) for side in shape]
        extra = [-side % length for side, length in zip(shape, patch, strict=True)]
        self.border = _behind(extra)
        self.body = ViT(
            in_channels=channels, img_size=tuple(side + more for side, more in zip(shape, extra, strict=True)),
            patch_size=tuple(patch), hidden_size=128, mlp_dim=256, num_layers=6, num_heads=4,
            classification=True, num_classes=outputs, spatial_dims=len(shape), post_activation="none",
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """What becomes probabilities, of images (n, c, *spatial)."""
        scores: Tensor = self.body(functional.pad(images, self.border))[0]
        return scores


BUILDERS: dict[str, Callable[[int, Shape, int], nn.Module]] = {
    "mlp": mlp,
    "convnet-bn": convnet_batch_norm,
    "resnet18": resnet18,
    "densenet121": densenet121,
    "vit": VisionTransformer,
}
"""Networks by name, from channels, shape and outputs."""


COSTS = {"vit": 3, "densenet121": 5, "resnet18": 8}
"""What training on an image costs, roughly, in images of the ConvNet; of other networks about 1.
Only order and time left follow from it."""


def make_network(name: str, channels: int, shape: Shape, outputs: int, filters: int, stem: int = 0) -> Network:
    """A network by name.

    Args:
        name: "convnet" or one of :data:`BUILDERS`.
        channels, shape, outputs: what it sees and says.
        filters: per convolution of the ConvNet for pictures, half as many for volumes; the others have their own
            width.
        stem: of the ConvNet, as for it.
    """
    if name == "convnet":
        return ConvNet(channels, shape, outputs, width_for(shape, filters), stem=stem)
    return ModuleNetwork(name, channels, shape, outputs)


def width_for(shape: Shape, filters: int) -> int:
    """Filters per convolution of a ConvNet for images of that shape: of volumes, whose layers cost far more, half."""
    return filters if len(shape) == 2 else max(1, filters // 2)
