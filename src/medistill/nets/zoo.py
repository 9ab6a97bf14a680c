"""Other networks than the one that images are distilled with, to see whether they train on them too.

Each is a torch module run as a pure function of its tensors, so it trains under the one recipe
like the ConvNet. ResNet-18, DenseNet-121 and the vision transformer are MONAI's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters

VERSION = 2
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
        """Class scores before softmax, (n, classes), of normalised images (n, c, h, w)."""


@dataclass(frozen=True)
class ModuleNetwork:
    """A torch module as a pure function of its tensors.

    Args:
        name: of :data:`BUILDERS`.
        channels, height, width, classes: what it sees and says.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: int

    @property
    def _module(self) -> nn.Module:
        return _module(self.name, self.channels, self.height, self.width, self.classes)

    @property
    def buffers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._module.named_buffers())

    @property
    def activation_mb(self) -> None:
        return None

    def parameters(self, key: Key) -> Parameters:
        # Modules draw from the global generator, which is put back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(key.generator().get_state())
            module = BUILDERS[self.name](self.channels, self.height, self.width, self.classes)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def logits(self, parameters: Parameters, images: Tensor, training: bool = False) -> Tensor:
        module = self._module.train(training)
        result: Tensor = torch.func.functional_call(module, parameters, (images,))
        return result


@functools.lru_cache(maxsize=16)
def _module(name: str, channels: int, height: int, width: int, classes: int) -> nn.Module:
    """The module's code; its own tensors are never used."""
    with torch.random.fork_rng(devices=[]):
        return BUILDERS[name](channels, height, width, classes)


def mlp(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Two hidden layers of 256 units on the pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, 256), nn.ReLU(),
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes),
    )  # fmt: skip


class _ChannelsLast(nn.Module):
    """Lays the channels of a pixel side by side, where convolutions and batch norm take less time."""

    def forward(self, images: Tensor) -> Tensor:
        """Equal images."""
        return images.contiguous(memory_format=torch.channels_last)


def convnet_batch_norm(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """The ConvNet of width 64 with batch in place of instance normalisation."""
    shape = ConvNet(channels, height, width, classes, 64)
    blocks: list[nn.Module] = [nn.ZeroPad2d(shape.padding), _ChannelsLast()]
    for fan in [channels, *[64] * (shape.depth - 1)]:
        blocks += [nn.Conv2d(fan, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(shape.embedding_size, classes))


class _Padded(nn.Module):
    """Pads images with zeros to at least 32 pixels a side, below which these networks have nothing left to pool."""

    def __init__(self, body: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_ChannelsLast(), body)
        self.border = (0, max(0, 32 - width), 0, max(0, 32 - height))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of images (n, c, h, w)."""
        scores: Tensor = self.body(functional.pad(images, self.border))
        return scores


def resnet18(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """He et al., CVPR 2016."""
    from monai.networks.nets.resnet import resnet18 as build

    stem = 3 if min(height, width) < SMALL_SIDE else 7
    body = build(spatial_dims=2, n_input_channels=channels, num_classes=classes, conv1_t_size=stem)
    return _Padded(body, height, width)


def densenet121(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """Huang et al., CVPR 2017."""
    from monai.networks.nets.densenet import DenseNet121

    body = DenseNet121(spatial_dims=2, in_channels=channels, out_channels=classes)
    if min(height, width) < SMALL_SIDE:
        body.features.conv0 = nn.Conv2d(channels, 64, 3, stride=2, padding=1, bias=False)
    return _Padded(body, height, width)


class VisionTransformer(nn.Module):
    """Six layers of 128 numbers, four heads, patches of a seventh of the side (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        from monai.networks.nets.vit import ViT

        super().__init__()
        patch = max(2, min(height, width) // 7)
        bottom, right = -height % patch, -width % patch
        self.border = (0, right, 0, bottom)
        self.body = ViT(
            in_channels=channels, img_size=(height + bottom, width + right), patch_size=(patch, patch),
            hidden_size=128, mlp_dim=256, num_layers=6, num_heads=4, classification=True, num_classes=classes,
            spatial_dims=2, post_activation="none",
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of images (n, c, h, w)."""
        scores: Tensor = self.body(functional.pad(images, self.border))[0]
        return scores


BUILDERS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "mlp": mlp,
    "convnet-bn": convnet_batch_norm,
    "resnet18": resnet18,
    "densenet121": densenet121,
    "vit": VisionTransformer,
}
"""Networks by name, from channels, height, width and classes."""


COSTS = {"vit": 3, "densenet121": 5, "resnet18": 8}
"""What training on an image costs, roughly, in images of the ConvNet; of other networks about 1.
Only order and time left follow from it."""


def make_network(name: str, channels: int, height: int, width: int, classes: int, filters: int) -> Network:
    """A network by name.

    Args:
        name: "convnet" or one of :data:`BUILDERS`.
        channels, height, width, classes: what it sees and says.
        filters: per convolution of the ConvNet; the others have their own width.
    """
    if name == "convnet":
        return ConvNet(channels, height, width, classes, filters)
    return ModuleNetwork(name, channels, height, width, classes)
