import math

import pytest
import torch
from torch import nn

from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, average_pool


@pytest.mark.parametrize(("channels", "size", "count"), [(1, 28, 317_706), (3, 32, 320_010)])
def test_parameter_count_of_the_published_network(channels, size, count):
    parameters = ConvNet(channels, size, size, 10).parameters(Key(0))
    assert sum(p.numel() for p in parameters.values()) == count


@pytest.mark.parametrize(("side", "depth"), [(16, 2), (28, 3), (32, 3), (64, 4), (128, 5), (224, 6)])
def test_depth_follows_size(side, depth):
    assert ConvNet(1, side, side, 2).depth == depth


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 28, 28), (2, 17, 41), (1, 64, 28), (4, 33, 33)])
def test_any_channels_any_size(shape):
    network = ConvNet(*shape, 5, filters=8)
    parameters = network.parameters(Key(0))
    images = torch.randn(3, *shape)
    assert network.embed(parameters, images).shape == (3, network.embedding_size)
    assert network.logits(parameters, images).shape == (3, 5)


def test_too_small_is_refused():
    with pytest.raises(ConfigError, match="16 pixels"):
        ConvNet(1, 15, 28, 2)


def test_same_as_modules():
    """Oracle: the same network out of torch's modules."""
    network = ConvNet(3, 28, 28, 4, filters=6)
    parameters = {k: v.double() for k, v in network.parameters(Key(1)).items()}
    blocks: list[nn.Module] = [nn.ZeroPad2d(2)]
    for i in range(3):
        blocks += [
            nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1),
            nn.InstanceNorm2d(6, affine=True),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * 16, 4)).double()
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters.values(), strict=True):
            own.copy_(given)
    x = torch.randn(5, 3, 28, 28, dtype=torch.float64)
    assert torch.allclose(model(x), network.logits(parameters, x), atol=1e-12)


def test_initialisation_is_torch_default():
    weight = ConvNet(3, 32, 32, 10).parameters(Key(0))["conv1.weight"]
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


def test_images_in_a_batch_do_not_mix():
    network = ConvNet(1, 20, 20, 3, filters=8)
    parameters = network.parameters(Key(0))
    x = torch.randn(4, 1, 20, 20)
    alone = torch.cat([network.embed(parameters, row[None]) for row in x])
    assert torch.allclose(network.embed(parameters, x), alone, atol=1e-6)
