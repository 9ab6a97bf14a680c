"""The field's common network, as a pure function of its parameters.

Three (by size: more or fewer) blocks of 3×3 convolution, per-channel instance normalisation
with learned scale and shift, ReLU and 2×2 average pooling, then one linear layer; PyTorch's
default initialisation. Source: Gidaris, Komodakis, CVPR 2018, in the form that Zhao, Mopuri,
Bilen, ICLR 2021 made the standard of dataset distillation ("ConvNet-D3-W128").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medistill.data.image import Shape, shape_in_words
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets import blocks, kernels, layers

Parameters = dict[str, Tensor]

SEEN_WHOLE, STEM_LEAVES = 48, 32
"""Shortest side from which patches take the place of pixels, and about how many are left of it."""


@dataclass(frozen=True)
class ConvNet:
    """The network's shape; parameters live outside, in a dictionary.

    Args:
        channels: image channels, 1 or more.
        shape: lengths in space in pixels, two or three, at least 16; need not be equal.
        outputs: numbers that it gives for an image, at least 1.
        filters: filters per convolution (the "W" of the name).
        depth: blocks (the "D"); 0 chooses by what the stem leaves of the shortest side: 16 → 2, 28–45 → 3.
        stem: patches of so many pixels a side become one pixel of that many more channels before the first
            convolution; 1 sees every pixel by itself, as published. 0 chooses by the shortest side, so that about 32
            are left: under 48 → 1, 64 → 2, 128 → 4, 224 → 7; in volumes 1.

    Images are padded with zeros up to a multiple of stem · 2**depth, so that no pooling drops a
    row: 28 becomes 32, as the reference program does for gray images by padding the first
    convolution by 3. Channels of patches are padded with zeros to a number that the compiled layers
    take. In volumes the first convolution takes steps of two pixels and stands for the first two blocks'
    pooling: at full size it would cost forty times what it does in a picture.
    """

    channels: int
    shape: Shape
    outputs: int
    filters: int = 128
    depth: int = 0
    stem: int = 0

    def __post_init__(self) -> None:
        side = min(self.shape)
        if side < 16:
            raise ConfigError(f"{shape_in_words(self.shape)} pixels", where="network", allowed="16 pixels or more")
        if not 0 <= self.stem <= side // 8 or (self.volumes and self.stem > 1):
            most = 1 if self.volumes else side // 8
            raise ConfigError(f"{self.stem}", where="stem", allowed=f"1 to {most} for {shape_in_words(self.shape)}")
        if self.stem == 0:
            object.__setattr__(self, "stem", 1 if self.volumes or side < SEEN_WHOLE else round(side / STEM_LEAVES))
        if self.depth == 0:
            object.__setattr__(self, "depth", max(1, round(math.log2(side / self.stem)) - 2))

    @property
    def volumes(self) -> bool:
        """Whether it sees volumes."""
        return len(self.shape) == 3

    @property
    def convolutions(self) -> int:
        """How many there are; in volumes the first stands for two."""
        return max(1, self.depth - 1) if self.volumes else self.depth

    @property
    def unit(self) -> int:
        """Pixels along a side that become one in the last feature map."""
        return self.stem * 2 ** (self.convolutions + 1 if self.volumes else self.depth)

    @property
    def first_channels(self) -> int:
        """Channels that the first convolution sees."""
        channels = self.channels * self.stem ** len(self.shape)
        return channels if self.stem == 1 or channels <= 4 else -(-channels // kernels.LANES) * kernels.LANES

    @property
    def padding(self) -> tuple[int, ...]:
        """Zeros added before and behind along each axis, the last axis first, as torch wants them."""
        widths: tuple[int, ...] = ()
        for side in reversed(self.shape):
            extra = -side % self.unit
            widths = (*widths, extra // 2, extra - extra // 2)
        return widths

    @property
    def embedding_size(self) -> int:
        """Numbers in the flattened last feature map."""
        return self.filters * math.prod(-(-side // self.unit) for side in self.shape)

    @property
    def parameter_count(self) -> int:
        """Numbers in all parameters."""
        fans, taps = [self.first_channels, *[self.filters] * (self.convolutions - 1)], 3 ** len(self.shape)
        return sum(self.filters * (taps * fan + 3) for fan in fans) + self.outputs * (self.embedding_size + 1)

    @property
    def activation_mb(self) -> float:
        """Megabytes (10⁶ bytes) that an image takes in a training step by torch's functions.

        Two maps a block are kept and two of the first pass by.
        """
        return self._maps_mb(2, 2)

    def activation_mb_on(self, device: torch.device, precision: str = "float32") -> float:
        """The same on that device: where the layers are compiled, one map a block and its pooled one are kept."""
        first = self.first_channels
        fits = self.filters % kernels.LANES == 0 and (first <= 4 or first % kernels.LANES == 0)
        if self.volumes or device.type != "cpu" or precision == "bfloat16" or not fits or kernels.library() is None:
            return self.activation_mb
        return self._maps_mb(1.25, 1.5)

    @property
    def input_mb(self) -> float:
        """Megabytes of an image, float32, as the first convolution sees it: few beside the maps, but in large images
        that are seen in patches.
        """
        area = math.prod(-(-side // self.unit) * self.unit // self.stem for side in self.shape)
        return 4e-6 * self.first_channels * area

    def _maps_mb(self, kept: float, passing: float) -> float:
        """Of so many maps kept of each block and passing by of the first. Torch's blocks of memory fit one another
        badly, so 0.6 times as much comes on top (measured at 28 pixels, 32 to 128 filters).
        """
        axes = len(self.shape)
        area = math.prod(-(-side // self.unit) * self.unit // self.stem for side in self.shape)
        shrinking = 0.5**axes
        maps = kept * sum(shrinking**block for block in range(self.convolutions)) + passing
        return 1.6 * 4e-6 * self.filters * area * maps * (shrinking if self.volumes else 1)

    def parameters(self, key: Key) -> Parameters:
        """New random parameters; equal keys give equal parameters."""
        generator = key.generator()
        parameters: Parameters = {}
        fan, channels = self.channels * self.stem ** len(self.shape), self.first_channels
        kernel = (3,) * len(self.shape)
        for block in range(self.convolutions):
            shape = (self.filters, channels, *kernel)
            parameters |= _uniform(f"conv{block}", shape, fan * math.prod(kernel), generator)
            parameters[f"norm{block}.weight"] = torch.ones(self.filters)
            parameters[f"norm{block}.bias"] = torch.zeros(self.filters)
            fan = channels = self.filters
        return parameters | _uniform("linear", (self.outputs, self.embedding_size), self.embedding_size, generator)

    def embed(self, parameters: Parameters, images: Tensor) -> Tensor:
        """The flattened last feature map, (n, embedding_size), of images (n, c, *spatial)."""
        x = self._patches(functional.pad(images, self.padding))
        if self.volumes:
            return self._embed_volumes(parameters, x)
        fast = blocks.usable(x, parameters["conv0.weight"])
        if fast:
            x = blocks.channels_last(x)
        for block in range(self.depth):
            weight, bias = parameters[f"conv{block}.weight"], parameters[f"conv{block}.bias"]
            scale, shift = parameters[f"norm{block}.weight"], parameters[f"norm{block}.bias"]
            if fast:
                x = layers.convolution_block(x, weight, bias, scale, shift)
            else:
                x = functional.conv2d(x, weight, bias, padding=1)
                x = functional.group_norm(x, self.filters, scale, shift)
                x = average_pool(functional.relu(x, inplace=True))
        return x.flatten(1)

    def _patches(self, x: Tensor) -> Tensor:
        if self.stem == 1:
            return x
        x = functional.pixel_unshuffle(x, self.stem)
        return functional.pad(x, (0, 0, 0, 0, 0, self.first_channels - x.shape[1]))

    def _embed_volumes(self, parameters: Parameters, x: Tensor) -> Tensor:
        for block in range(self.convolutions):
            weight, bias = parameters[f"conv{block}.weight"], parameters[f"conv{block}.bias"]
            scale, shift = parameters[f"norm{block}.weight"], parameters[f"norm{block}.bias"]
            x = functional.conv3d(x, weight, bias, padding=1, stride=2 if block == 0 else 1)
            x = functional.group_norm(x, self.filters, scale, shift)
            x = functional.relu(x, inplace=True)
            # On a CPU torch does not pool volumes in bfloat16.
            half = x.dtype == torch.bfloat16 and x.device.type == "cpu"
            x = functional.avg_pool3d(x.float() if half else x, 2).to(x.dtype)
        return x.flatten(1)

    @property
    def buffers(self) -> frozenset[str]:
        """Names of tensors that gradients do not change: none."""
        return frozenset()

    def logits(self, parameters: Parameters, images: Tensor, training: bool = False) -> Tensor:
        """What becomes probabilities, (n, outputs); the same in training and after."""
        features = self.embed(parameters, images)
        return functional.linear(features, parameters["linear.weight"], parameters["linear.bias"])


class _AveragePool(torch.autograd.Function):
    """Forward as sums of slices, backward as one spread copy; both are made of differentiable steps."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing need be kept; torch's function transforms ask for this hook."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        rows = x[..., 0::2, :] + x[..., 1::2, :]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Spread.apply(gradients[0])


class _Spread(torch.autograd.Function):
    """A quarter of each pixel to each of the four it came from: the pooling's transpose, so each is the other's."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing need be kept."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        *outer, height, width = y.shape
        # A product with a fixed matrix widens the rows, two whole copies double them.
        quarter = torch.eye(width, dtype=y.dtype, device=y.device).mul_(0.25).repeat_interleave(2, dim=1)
        rows = (y.reshape(-1, width) @ quarter).view(*outer, height, 2 * width)
        spread = y.new_empty(*outer, height, 2, 2 * width)
        spread[..., 0, :] = rows
        spread[..., 1, :] = rows
        return spread.view(*outer, 2 * height, 2 * width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return average_pool(gradients[0])


def average_pool(x: Tensor) -> Tensor:
    """2×2 average pooling of even sides.

    On the CPU ``avg_pool2d`` is not vectorised, and slices alone leave autograd to fill and add
    four full-size gradients, a sixth of a training step.
    """
    return _AveragePool.apply(x)


def _uniform(name: str, shape: tuple[int, ...], fan: int, generator: torch.Generator) -> Parameters:
    """PyTorch's default for convolutions and linear layers: both uniform within ±1/√fan."""
    bound = 1 / math.sqrt(fan)
    weight = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    bias = (torch.rand(shape[0], generator=generator) * 2 - 1) * bound
    return {f"{name}.weight": weight, f"{name}.bias": bias}
