"""Compiled layers against torch's own in float64."""

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import functional

from medistill.config import Recipe
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.keys import Key
from medistill.nets import blocks, kernels, layers, training
from medistill.nets.convnet import ConvNet
from medistill.parallel import SpareCores, layer_threads, one_thread
from rounding import relative_error, small_network

ROOT = Path(__file__).parents[1]
compiled_here = pytest.mark.skipif(
    kernels.library() is None, reason="the kernels are not compiled for this processor"
)
Function = Callable[..., torch.Tensor]


def _all_gradients(function: Function, given: list[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    """What comes out, its gradients by what was given, and theirs by the first two and by what comes back."""
    own = [t.to(kind).requires_grad_(True) for t in given]
    draw = Key(9).generator()
    out = function(*own)
    coming = torch.randn(out.shape, generator=draw).to(kind).requires_grad_(True)
    first = torch.autograd.grad(out, own, coming, create_graph=True)
    again = sum((g * torch.randn(g.shape, generator=draw).to(kind)).sum() for g in first)
    plain = torch.autograd.grad(function(*own), own, coming.detach())
    return [out, *first, *plain, *torch.autograd.grad(again, [own[0], own[1], coming])]


@compiled_here
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 24])
@pytest.mark.parametrize("size", [(8, 12), (6, 10), (4, 4), (64, 32), (70, 6)])
def test_convolution_equals_torchs(channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through tiles or not, in one chunk or several, in strips of rows that do not come out even."""
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 100_000)
    draw = Key(3).generator()
    images = torch.randn(19, channels, *size, generator=draw)
    given = [images, torch.randn(16, channels, 3, 3, generator=draw), torch.randn(16, generator=draw)]
    wanted = _all_gradients(lambda x, w, b: functional.conv2d(x, w, b, padding=1), given, torch.float64)
    for mine, other in zip(_all_gradients(layers.convolution, given, torch.float32), wanted, strict=True):
        assert mine.shape == other.shape and relative_error(mine, other) < 1e-5


@compiled_here
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("learned", [(0, 1, 2, 3, 4), (0,), (1, 2), (3, 4)])
def test_a_block_is_its_two_layers(channels: int, learned: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: what it gives, its gradients, and theirs, by whatever is learned."""
    draw = Key(5).generator()
    shapes = [(5, channels, 8, 12), (16, channels, 3, 3), (16,), (16,), (16,)]
    given = [torch.randn(shape, generator=draw) for shape in shapes]
    coming = torch.randn(5, 16, 4, 6, generator=draw)

    def apart(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        return blocks.norm_relu_pool(layers.convolution(images, weight, bias), *norm)

    def found(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        own = [one.clone().requires_grad_(place in learned) for place, one in enumerate(given)]
        asked = [own[place] for place in learned]
        out = function(*own)
        plain = torch.autograd.grad(out, asked, coming, retain_graph=True)
        first = torch.autograd.grad(out, asked, coming, create_graph=True)
        second = torch.autograd.grad(sum(one.pow(3).sum() for one in first), asked, allow_unused=True)
        return [out.detach(), *plain, *first, *(one for one in second if one is not None)]

    with monkeypatch.context() as patch:
        patch.setattr(layers, "convolution", None)  # which the one layer does not call
        together = found(layers.convolution_block)
    for one, two in zip(together, found(apart), strict=True):
        assert torch.equal(one, two)


@compiled_here
def test_convolution_is_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would pass if torch's were taken."""
    called: list[str] = []
    compiled = kernels.library()

    class Watched:
        def __getattr__(self, name: str) -> object:
            called.append(name)
            return getattr(compiled, name)

    monkeypatch.setattr(kernels, "library", Watched)
    for channels in (3, 8):
        images = torch.randn(2, channels, 8, 8).requires_grad_(True)
        weight, bias = torch.randn(8, channels, 3, 3).requires_grad_(True), torch.zeros(8)
        layers.convolution(images, weight, bias).sum().backward()
    assert {"convolution", "convolution_kernel", "first_images", "first_weight"} == set(called)


@compiled_here
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (20.0, 1.0), (5.0, 0.01)])
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.7])
def test_normalising_and_pooling_equal_torchs(mean: float, spread: float, scale: float) -> None:
    """Also where channels lie far from zero, and where a learned scale is zero or negative."""
    draw = Key(4).generator()
    images = mean + spread * torch.randn(5, 24, 8, 6, generator=draw)
    weight, bias = torch.rand(24, generator=draw) + 0.3, torch.randn(24, generator=draw)
    weight[3], bias[3] = scale, 0.5
    given = [images, weight, bias]
    wanted = _all_gradients(blocks.plain_norm_relu_pool, given, torch.float64)
    theirs = _all_gradients(blocks.plain_norm_relu_pool, given, torch.float32)
    ours = _all_gradients(blocks.norm_relu_pool, given, torch.float32)
    for mine, other, exact in zip(ours, theirs, wanted, strict=True):
        assert relative_error(mine, exact) < 1e-5 + 2 * relative_error(other, exact)


@compiled_here
@pytest.mark.parametrize("channels", [16, 24, 32, 64])
def test_channels_are_the_same_however_many_go_together(channels: int) -> None:
    """Eight, where the processor can sixteen, and up to four times as many go over an image together."""
    draw = Key(4).generator()
    images, coming = torch.randn(3, 64, 8, 8, generator=draw), torch.randn(3, 64, 4, 4, generator=draw)
    weight, bias = torch.randn(64, generator=draw), torch.randn(64, generator=draw)
    pixels = torch.randn(3, 2, 8, 8, generator=draw)

    def found(channels: int) -> list[torch.Tensor]:
        own = [images[:, :channels].clone(), weight[:channels].clone(), bias[:channels].clone()]
        for tensor in own:
            tensor.requires_grad_(True)
        pooled = blocks.norm_relu_pool(*own)
        slopes = torch.autograd.grad(pooled, own, coming[:, :channels], create_graph=True)
        (second,) = torch.autograd.grad(slopes[0].pow(3).sum(), own[0])
        first = kernels.convolution_parameters(pixels, images[:, :channels])
        cut = [t.detach()[:, :8] if t.ndim == 4 else t.detach()[:8] for t in (pooled, *slopes, second)]
        return [*cut, first[0][:8], first[1][:8]]

    for eight, more in zip(found(8), found(channels), strict=True):
        assert torch.equal(eight, more)


@compiled_here
def test_what_is_no_number_stays_none() -> None:
    images = torch.zeros(1, 8, 4, 4)
    images[0, 2, 1, 1] = torch.nan
    out = blocks.norm_relu_pool(images, torch.ones(8), torch.zeros(8))
    assert out[0, 2].isnan().all() and not out[0, 3].isnan().any()


@compiled_here
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_is_the_same_on_any_number_of_threads_and_close_to_the_exact_one(channels: int) -> None:
    _, results = small_network(channels)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(torch.float32))
    finally:
        torch.set_num_threads(before)
    for one, two, exact in zip(*found, results(torch.float64), strict=True):
        assert relative_error(one, two) < 1e-6
        assert relative_error(one, exact) < 1e-4


@pytest.mark.parametrize(
    ("images", "filters"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), 8),
        (torch.zeros(2, 3, 8, 8).bfloat16(), 8),
        (torch.zeros(2, 5, 8, 8), 8),
        (torch.zeros(2, 3, 8, 8), 12),
        (torch.zeros(2, 3, 7, 8), 8),
        (torch.zeros(0, 3, 8, 8), 8),
    ],
)
def test_what_the_kernels_do_not_take_goes_to_torch(images: torch.Tensor, filters: int) -> None:
    weight = torch.ones(filters, images.shape[1], 3, 3).to(images.dtype)
    assert not kernels.computed(images, weight)
    assert layers.convolution(images, weight, weight.new_zeros(filters)).shape == (
        len(images), filters, *images.shape[2:],
    )  # fmt: skip


@compiled_here
def test_other_shapes_kinds_and_precisions_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, bias = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3), torch.randn(8)
    assert kernels.computed(images, weight, bias)
    assert not kernels.computed(images, weight.double(), bias)
    assert layers.convolution(images, weight[:, :, :1, :1], bias).shape == (2, 8, 10, 10), "as torch pads it"
    with pytest.raises(RuntimeError, match="expected bias"):
        layers.convolution(images, weight, torch.randn(16))
    with pytest.raises(RuntimeError):
        blocks.norm_relu_pool(images, torch.ones(16), torch.zeros(16))
    for context in (torch.autocast("cpu", torch.bfloat16), torch.autograd.forward_ad.dual_level()):
        with context:
            assert not kernels.computed(images, weight, bias)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not kernels.computed(images, weight, bias)
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(TypeError, match="first_images"):
        kernels.convolution_images(images.double(), weight[:, :3])


@compiled_here
def test_gradients_are_plain_float32() -> None:
    """Whatever is around the way back, also where a bias lies in pieces; batches of gradients are refused."""
    draw = Key(11).generator()
    images, weight = torch.randn(3, 8, 8, 8, generator=draw), torch.randn(8, 8, 3, 3, generator=draw)
    bias, scale = torch.randn(8, 2, generator=draw)[:, 0], torch.rand(8, generator=draw) + 0.5
    weight.requires_grad_(True)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return blocks.norm_relu_pool(layers.convolution(x, weight, bias), scale, bias).sum((2, 3))

    (wanted,) = torch.autograd.grad(layer(images)[0, 0], weight, retain_graph=True)
    out = layer(images)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(out[0, 0], weight, retain_graph=True)
    assert torch.equal(found, wanted)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out[0], weight, torch.eye(8), is_grads_batched=True)


@compiled_here
def test_a_third_derivative_is_that_of_torchs_functions() -> None:
    draw = Key(12).generator()
    given = [
        torch.randn(2, 8, 4, 4, generator=draw),
        torch.rand(8, generator=draw) + 0.5,
        torch.randn(8, generator=draw),
    ]

    def third(function: Function, kind: torch.dtype) -> list[torch.Tensor]:
        own = [t.to(kind).requires_grad_(True) for t in given]
        value = function(*own).square().sum()
        for _ in range(2):
            (slope,) = torch.autograd.grad(value, own[0], create_graph=True)
            value = slope.square().sum()
        return list(torch.autograd.grad(value, own[:2]))

    wanted = third(blocks.plain_norm_relu_pool, torch.float64)
    for mine, other in zip(third(blocks.norm_relu_pool, torch.float32), wanted, strict=True):
        assert relative_error(mine, other) < 1e-3


@compiled_here
def test_what_is_kept_of_weights_follows_them_and_ends_with_them() -> None:
    images, bias = torch.randn(4, 8, 8, 8, requires_grad=True), torch.zeros(8)
    weight = torch.randn(8, 8, 3, 3)
    before = len(kernels._kept[0]), len(kernels._kept[1])
    for _ in range(2):
        for _ in range(2):
            ours, theirs = layers.convolution(images, weight, bias), functional.conv2d(images, weight, padding=1)
            assert relative_error(ours, theirs) < 1e-4
            one, other = (torch.autograd.grad(maps.square().sum(), images)[0] for maps in (ours, theirs))
            assert relative_error(one, other) < 1e-4
        weight.mul_(2)
    assert (len(kernels._kept[0]), len(kernels._kept[1])) == (before[0] + 1, before[1] + 1)
    del weight, ours, one, theirs, other
    assert (len(kernels._kept[0]), len(kernels._kept[1])) == before


def test_what_was_compiled_from_another_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in Path(kernels.__file__).parent.glob("kernels*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    assert kernels.library.__wrapped__() is not None
    for name in kernels.SOURCES:
        source = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(source + b"/* changed since */")
        assert kernels.library.__wrapped__() is None
        (tmp_path / name).write_bytes(source)


def test_function_transforms_and_processors_without_kernels_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvNet(3, (16, 16), 2, filters=8)
    parameters = network.parameters(Key(1))
    images = torch.randn(4, 2, 3, 16, 16, generator=Key(2).generator())
    stacked = torch.func.vmap(lambda x: network.embed(parameters, x))(images)
    monkeypatch.setattr(kernels, "library", lambda: None)
    for one, many in zip(images, stacked, strict=True):
        torch.testing.assert_close(network.embed(parameters, one), many)


@compiled_here
@pytest.mark.parametrize("phantom", ["size=16", "size=28,colour=true", "size=64"])
def test_a_training_is_the_same_to_the_byte_on_any_number_of_spare_cores(
    phantom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lent or not, from step to step; up to more threads than most machines have cores."""
    prepared, used = prepare(load(f"phantom:classes=3,images=40,{phantom}")), set()
    data, recipe = prepared.train, Recipe(min_steps=8, max_steps=8)
    network = ConvNet(data.channels, data.shape, 3, 64)

    def trained(*wanted: int) -> bytes:
        class Lending(SpareCores):
            turns, WORTH = cycle(wanted), float("inf")
            threads = property(lambda self: next(self.turns))

            def __init__(self) -> None:
                super().__init__(8)
                self.alone.append(1.0)

        def loss(*given: torch.Tensor) -> torch.Tensor:
            used.add(layer_threads())
            return prepared.task.loss(*given)

        monkeypatch.setattr(training, "SpareCores", Lending)
        run = training.Training(network, data, prepared.task, prepared.normalisation, recipe, Key(1))
        monkeypatch.setattr(run, "task", SimpleNamespace(loss=loss))
        with one_thread():
            return b"".join(tensor.numpy().tobytes() for tensor in run.run().values())

    alone = trained(1)
    assert all(trained(*wanted) == alone for wanted in [(2,), (3,), (8,), (1, 2, 5)])
    assert used == {1, 2, 3, 5, 8}


def _build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = ROOT / "src" / "medistill" / "nets" / "kernels.c"
builds_here = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or importlib.util.find_spec("hatchling") is None,
    reason="nothing is compiled but on Linux with an x86 processor, by hatchling",
)


@builds_here
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no GNU compiler is installed")
def test_the_kernels_compile_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A compiler may be given with words of its own."""
    script = _build_script()
    monkeypatch.setattr(script, "FLAGS", [*script.FLAGS, "-Wextra", "-Werror"])
    monkeypatch.setenv("CC", "gcc -DOTHER=1")
    libraries = script.compiled(SOURCE, tmp_path)
    assert capsys.readouterr().err == ""
    assert {library.name for library in libraries} == {"kernels-avx2.so", "kernels-avx512.so"}
    assert all(library.stat().st_size for library in libraries)


@builds_here
@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false", "true"])
def test_without_a_compiler_that_works_nothing_is_compiled_and_that_is_said(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert _build_script().compiled(SOURCE, tmp_path) == []
    assert "torch's functions will be used" in capsys.readouterr().err
