"""Normalisation, ReLU and pooling in one, channels last, against torch's own functions."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from medistill.keys import Key
from medistill.nets import blocks
from medistill.nets.convnet import ConvNet
from rounding import relative_error, small_network


def _given(kind: torch.dtype, smallest_scale: float = 0.5) -> list[torch.Tensor]:
    draw = Key(5).generator()
    images = torch.randn(7, 6, 8, 4, generator=draw) * 2 + torch.arange(6).view(1, 6, 1, 1)
    weight = smallest_scale + torch.rand(6, generator=draw)
    bias = torch.randn(6, generator=draw)
    return [t.to(kind).requires_grad_(True) for t in (images, weight, bias)]


@pytest.mark.parametrize("smallest_scale", [0.5, 0.0, -1.0])
def test_equals_torchs_functions(smallest_scale: float) -> None:
    """Oracle in float64, also where a learned scale is zero or negative."""
    given = _given(torch.float64, smallest_scale)
    with torch.no_grad():
        given[1][2] = smallest_scale
    ours, theirs = blocks.norm_relu_pool(*given), blocks.plain_norm_relu_pool(*given)
    torch.testing.assert_close(ours, theirs)
    coming = torch.randn(ours.shape, generator=Key(6).generator(), dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, given, coming), torch.autograd.grad(theirs, given, coming), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_gradients_are_differentiated_again() -> None:
    given = _given(torch.float64)
    for images, weight, bias in (given, [given[0], given[1].detach(), given[2].detach()]):
        second = []
        for function in (blocks.norm_relu_pool, blocks.plain_norm_relu_pool):
            out = function(images, weight, bias).square().sum()
            (first,) = torch.autograd.grad(out, images, create_graph=True)
            second += torch.autograd.grad(first.square().sum(), images)
        torch.testing.assert_close(second[0], second[1])


def test_without_gradients_the_same_values() -> None:
    given = [t.detach() for t in _given(torch.float64)]
    wanted = blocks.plain_norm_relu_pool(*given)
    torch.testing.assert_close(blocks.norm_relu_pool(*given), wanted)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_in_bfloat16_rounds_no_more_than_torchs_functions(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, results = small_network(channels)
    exact = results(torch.float64)
    taken = []
    block = blocks.norm_relu_pool
    monkeypatch.setattr(blocks, "norm_relu_pool", lambda *given: taken.append(1) or block(*given))
    ours = results(torch.bfloat16)
    assert len(taken) == network.depth, "the fast way was taken"
    monkeypatch.setattr(blocks, "usable", lambda images, weight: False)
    theirs = results(torch.bfloat16)
    assert len(taken) == network.depth
    for mine, other, wanted in zip(ours, theirs, exact, strict=True):
        assert relative_error(mine, wanted) < 1.5 * relative_error(other, wanted) + 1e-3


@pytest.mark.parametrize(("mean", "spread"), [(3.9, 1.0), (20.0, 1.0), (5.0, 0.1)])
@pytest.mark.parametrize("scale", [1.0, 0.3, 0.1, 0.002])
def test_far_means_and_small_scales_round_no_more_than_with_torchs_functions(
    mean: float, spread: float, scale: float
) -> None:
    """In bfloat16, where sums of squares and divisions by a small scale would lose everything."""
    draw = Key(7).generator()
    images = mean + spread * torch.randn(16, 8, 16, 16, generator=draw)
    coming = torch.randn(16, 8, 8, 8, generator=draw)

    def results(function: Callable[..., torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
        values = (images.bfloat16(), torch.full((8,), scale).bfloat16(), torch.full((8,), 0.5))
        given = [t.to(kind).clone().requires_grad_(True) for t in values]
        out = function(*given)
        return [out.detach(), *torch.autograd.grad(out, given, coming.to(kind))]

    exact = results(blocks.plain_norm_relu_pool, torch.float64)
    ours, theirs = (results(f, torch.bfloat16) for f in (blocks.norm_relu_pool, blocks.plain_norm_relu_pool))
    for mine, other, wanted in zip(ours, theirs, exact, strict=True):
        assert relative_error(mine, wanted) < max(0.1, 2 * relative_error(other, wanted))


@pytest.mark.parametrize("size", [28, 64])
def test_dark_images_in_bfloat16_round_no_more_than_with_torchs_functions(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As radiographs are: nearly all of one value, with a bright spot."""
    draw = Key(8).generator()
    images = -1.5 + 0.02 * torch.randn(6, 1, size, size, generator=draw)
    images[:, :, 10:14, 10:14] = 3
    network = ConvNet(1, (size, size), 3, filters=32)
    start = network.parameters(Key(1))

    def embedded(kind: torch.dtype) -> torch.Tensor:
        return network.embed({name: t.to(kind) for name, t in start.items()}, images.to(kind))

    exact, ours = embedded(torch.float64), embedded(torch.bfloat16)
    monkeypatch.setattr(blocks, "usable", lambda images, weight: False)
    assert relative_error(ours, exact) < 1.5 * relative_error(embedded(torch.bfloat16), exact)


def test_one_channel_is_brought_to_channels_last() -> None:
    images = torch.randn(2, 1, 4, 6)
    last = blocks.channels_last(images)
    assert torch.equal(last, images) and last.stride() == (24, 1, 6, 1)
    convolved = functional.conv2d(last.bfloat16(), torch.randn(5, 1, 3, 3).bfloat16(), padding=1)
    assert convolved.is_contiguous(memory_format=torch.channels_last)
