import math

import pytest
import torch
from torch import nn

from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, average_pool
from reference.convnet import modules


@pytest.mark.parametrize(("channels", "size", "count"), [(1, 28, 317_706), (3, 32, 320_010)])
def test_parameter_count_of_the_published_network(channels, size, count):
    parameters = ConvNet(channels, (size, size), 10).parameters(Key(0))
    assert sum(p.numel() for p in parameters.values()) == count


@pytest.mark.parametrize(("side", "depth"), [(16, 2), (28, 3), (32, 3), (64, 4), (128, 5), (224, 6)])
def test_depth_follows_size_where_every_pixel_is_seen(side, depth):
    shapes = (side, side), (256, side)
    assert [ConvNet(1, shape, 2, stem=1).depth for shape in shapes] == [depth, depth]


@pytest.mark.parametrize(
    ("side", "stem", "channels"), [(28, 1, 3), (47, 1, 3), (48, 2, 16), (64, 2, 16), (128, 4, 48), (224, 7, 152)]
)
def test_patches_leave_about_32_a_side(side, stem, channels):
    network = ConvNet(3, (side, side), 2)
    assert (network.stem, network.first_channels) == (stem, channels)
    assert network.depth == {47: 4, 48: 3}.get(side, 3)
    assert ConvNet(1, (side, side, side), 2).stem == 1
    assert ConvNet(1, (64, 64), 2).first_channels == 4, "as few as the compiled layers take as they are"


@pytest.mark.parametrize(("shape", "stem"), [((28, 28), 4), ((28, 28, 28), 2)])
def test_a_stem_that_leaves_too_little_is_refused(shape, stem):
    with pytest.raises(ConfigError, match="stem"):
        ConvNet(1, shape, 2, stem=stem)


def test_a_stem_is_a_strided_convolution():
    """Of kernels three patches a side, which is what patches as channels come to."""
    network = ConvNet(3, (96, 72), 4, filters=6, depth=1, stem=3)
    parameters = {k: v.double() for k, v in network.parameters(Key(1)).items()}
    x = torch.randn(2, 3, 96, 72, dtype=torch.float64)
    weight = parameters["conv0.weight"][:, :27].view(6, 3, 3, 3, 3, 3)  # filter, channel, within a patch, patches
    kernel = weight.permute(0, 1, 4, 2, 5, 3).reshape(6, 3, 9, 9)
    strided = nn.functional.conv2d(x, kernel, parameters["conv0.bias"], padding=3, stride=3)
    normed = nn.functional.group_norm(strided, 6, parameters["norm0.weight"], parameters["norm0.bias"])
    assert torch.allclose(nn.functional.avg_pool2d(normed.relu(), 2).flatten(1), network.embed(parameters, x))


@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (28, 28)), (3, (17, 41)), (3, (64, 90)), (1, (28, 28, 28)), (1, (16, 20, 70))]
)
def test_parameters_are_as_many_as_is_said(channels, shape):
    network = ConvNet(channels, shape, 5, filters=8)
    assert sum(p.numel() for p in network.parameters(Key(0)).values()) == network.parameter_count


@pytest.mark.parametrize(
    ("channels", "shape"),
    [
        (1, (16, 16)), (3, (28, 28)), (2, (17, 41)), (1, (64, 28)), (4, (33, 33)), (3, (50, 64)),
        (1, (16, 16, 16)), (3, (28, 28, 28)), (2, (17, 16, 25)),
    ],
)  # fmt: skip
def test_any_channels_any_size(channels, shape):
    network = ConvNet(channels, shape, 5, filters=8)
    parameters = network.parameters(Key(0))
    images = torch.randn(3, channels, *shape)
    assert network.embed(parameters, images).shape == (3, network.embedding_size)
    assert network.logits(parameters, images).shape == (3, 5)


@pytest.mark.parametrize("shape", [(15, 28), (28, 28, 15)])
def test_too_small_is_refused(shape):
    with pytest.raises(ConfigError, match="16 pixels"):
        ConvNet(1, shape, 2)


@pytest.mark.parametrize(
    ("channels", "shape", "padding"),
    [(3, (28, 28), (2, 2, 2, 2)), (1, (17, 40), (0, 0, 1, 2)), (2, (28, 16, 21), (1, 2, 0, 0, 0, 0))],
)
def test_same_as_modules(channels, shape, padding):
    network = ConvNet(channels, shape, 4, filters=6)
    assert network.padding == padding
    parameters = {k: v.double() for k, v in network.parameters(Key(1)).items()}
    x = torch.randn(5, channels, *shape, dtype=torch.float64)
    assert torch.allclose(modules(network, parameters)(x), network.logits(parameters, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (28, 16, 21)])
def test_in_bfloat16_a_cpu_gives_nearly_the_same(shape):
    network = ConvNet(1, shape, 4, filters=8)
    parameters, x = network.parameters(Key(1)), torch.randn(5, 1, *shape, generator=Key(2).generator())
    half = network.logits({n: p.bfloat16() for n, p in parameters.items()}, x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), network.logits(parameters, x), atol=0.05)


def test_initialisation_is_torch_default():
    weight = ConvNet(3, (32, 32), 10).parameters(Key(0))["conv1.weight"]
    bound = 1 / math.sqrt(128 * 9)
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_pooling_equals_torch():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    assert torch.allclose(average_pool(x), nn.functional.avg_pool2d(x, 2), atol=1e-15)


def test_pooling_can_be_differentiated_twice():
    # Gradient matching differentiates a gradient.
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(average_pool, x)
    assert torch.autograd.gradgradcheck(lambda z: average_pool(z).square(), x)


@pytest.mark.parametrize("shape", [(20, 20), (16, 16, 16)])
def test_images_in_a_batch_do_not_mix(shape):
    network = ConvNet(1, shape, 3, filters=8)
    parameters = network.parameters(Key(0))
    x = torch.randn(4, 1, *shape)
    alone = torch.cat([network.embed(parameters, row[None]) for row in x])
    assert torch.allclose(network.embed(parameters, x), alone, atol=1e-6)
