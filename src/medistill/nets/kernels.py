"""What a ConvNet computes in float32 on a CPU: ``kernels.c``, where it was compiled when the package was installed.

On these processors torch multiplies as often as the definition of a convolution says, and takes several times as
long as its multiplications for gradients of convolutions of few channels and for what is between convolutions. What
is here gives the same numbers but for rounding in about half the time (``benchmarks/bench_blocks.py``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakIdKeyDictionary

from medistill.parallel import layer_threads

LANES = 8
"""Numbers of filters are multiples of so many."""

SOURCES = ("kernels.c", "kernels.h")
"""What is compiled, beside this file."""

CHUNK_BYTES = 5_000_000
"""Of what products are taken of at a time; it stays in the cache between one step and the next."""

SPACE = 16
"""Numbers between the points of tiles, as in ``kernels.c``."""

STRIP = 32
"""Rows of an image over which a gradient by parameters is summed before those sums are, as in ``kernels.c``."""

TO_POINTS = torch.tensor([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
], dtype=torch.float32, device="cpu")  # fmt: skip
"""A kernel's row at the six points of F(4, 3): 0, 1, −1, 2, −2 and infinity."""

BOTH_WAYS = torch.kron(TO_POINTS, TO_POINTS)
"""A kernel's nine numbers at all pairs of points, (36, 9)."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions compiled for this processor from the source beside this file; None where there are none, or no
    products of torch's that they could call.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or _products() is None:
        return None
    here, capability = Path(__file__).parent, torch.backends.cpu.get_cpu_capability().lower()
    source = int(hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()[:15], 16)
    for name in {"avx512": ("avx512", "avx2"), "avx2": ("avx2",)}.get(capability, ()):
        try:
            compiled = ctypes.CDLL(str(here / f"kernels-{name}.so"))
            compiled.medistill_source.restype = ctypes.c_long
            if compiled.medistill_source() == source:
                return compiled
        except (OSError, AttributeError):
            continue
    return None


def computed(images: Tensor, *learned: Tensor) -> bool:
    """Whether the functions here compute a layer with such parameters, (filters, ...) each, on images (n, c, h, w).

    They do on a CPU that they were compiled for, in plain float32, for at most four channels or a multiple of eight,
    a multiple of eight filters and even sides, outside whatever looks into functions or transforms them.
    """
    channels, height, width = images.shape[1:]
    return (
        all(_plain(tensor) for tensor in (images, *learned))
        and all(len(tensor) % LANES == 0 for tensor in learned)
        and (channels <= 4 or channels % LANES == 0)
        and height % 2 == 0
        and width % 2 == 0
        and len(images) > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() == "highest"
        and not transformed()
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def transformed() -> bool:
    """Whether torch's function transforms are at work, which see no further than torch's own functions."""
    return bool(torch._C._are_functorch_transforms_active())


def _plain(tensor: Tensor) -> bool:
    kind = type(tensor) in (Tensor, torch.nn.Parameter)
    return kind and tensor.is_cpu and tensor.dtype == torch.float32


def _call(name: str, *given: Tensor | int | float) -> None:
    """A compiled function on dense float32 tensors; its last argument is the number of threads.

    Raises:
        MemoryError: a function of the first layer got none.
        TypeError: a tensor of another kind, which it would misread.
    """
    words: list[int | float] = []
    for one in given:
        if isinstance(one, Tensor):
            if one.dtype != torch.float32 or not one.is_cpu or not one.is_contiguous():
                raise TypeError(f"{name}: {one.dtype} on {one.device}, strides {one.stride()}")
            words.append(one.data_ptr())
        else:
            words.append(one)
    if _function(library(), name, tuple(map(type, given)))(*words, layer_threads()) and name.startswith("first"):
        raise MemoryError(f"no memory for {name}")


@functools.cache
def _function(compiled: ctypes.CDLL, name: str, kinds: tuple[type, ...]) -> Any:
    """A compiled function that was told what it is given, which takes it faster than being told each time."""
    function = getattr(compiled, name)
    types = {int: ctypes.c_long, float: ctypes.c_float}
    function.argtypes = [*(types.get(kind, ctypes.c_void_p) for kind in kinds), ctypes.c_int]
    return function


def _of_mkl(name: str) -> Any:
    """A function of the MKL that torch is linked with; None in a torch without it."""
    try:
        return getattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")), name)
    except (OSError, AttributeError):
        return None


@functools.cache
def _products() -> int | None:
    """Where MKL's products of several pairs of matrices are, as torch's ``bmm`` asks for them."""
    return ctypes.cast(found, ctypes.c_void_p).value if (found := _of_mkl("cblas_sgemm_batch")) else None


@functools.cache
def _products_threads() -> Any:
    """MKL's function that sets the threads of the calling thread's products alone; None in a torch without it.

    torch's own sets them for all threads. The 36 products at the points are shared out whole, so they are the same
    on any number of threads, which a single product is not.
    """
    if (found := _of_mkl("MKL_Set_Num_Threads_Local")) is not None:
        found.restype, found.argtypes = ctypes.c_int, [ctypes.c_int]
    return found


@contextmanager
def _products_on_as_many_threads() -> Iterator[None]:
    """Within, products that this thread asks for use as many threads as its compiled layers."""
    threads, use = layer_threads(), _products_threads()
    if use is None or threads == torch.get_num_threads():
        yield
        return
    before = use(threads)
    try:
        yield
    finally:
        use(before)


def _rows(images: Tensor) -> Tensor:
    """(n, c, h, w) as (n, h, w, c), dense; a copy unless they lie so already."""
    return images.permute(0, 2, 3, 1).contiguous()


def _columns(images: Tensor) -> Tensor:
    """(n, h, w, c) as (n, c, h, w)."""
    return images.permute(0, 3, 1, 2)


def tiled(shape: Sequence[int]) -> bool:
    """Whether a convolution of images (n, c, h, w) goes through tiles: not of few channels, and tiles must fit."""
    _, channels, height, width = shape
    return channels % LANES == 0 and height % 4 == 0 and width % 4 == 0


def convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3×3 convolution with a border of zeros through tiles of 4×4 pixels: a quarter of the multiplications.

    Args:
        images: (n, c, h, w), as :func:`tiled` wants them.
        weight: (filters, c, 3, 3).
        bias: (filters,).

    Returns:
        (n, filters, h, w), channels last; about eight times as far from the exact numbers as torch's.

    Source: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    return _convolution(images, _points_of(weight, False), bias)


def _convolution(images: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """The same, of a kernel at the points."""
    x = _rows(images)
    n, height, width, channels = x.shape
    filters = len(bias)
    out = x.new_empty(n, height, width, filters)
    room, at_once = _room(x, filters)
    with _products_on_as_many_threads():
        _call(
            "convolution", x, kernel, bias.contiguous(), out, room, _products() or 0,
            n, height, width, channels, filters, at_once,
        )  # fmt: skip
    return _columns(out)


def convolution_images(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a convolution by its images, (n, c, h, w)."""
    channels = weight.shape[1]
    if channels % LANES == 0:
        return _convolution(gradient, _points_of(weight, True), weight.new_zeros(channels))
    coming = _rows(gradient)
    n, height, width, filters = coming.shape
    flat = weight.permute(0, 2, 3, 1).reshape(filters, -1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % LANES)).contiguous()
    by_images = coming.new_empty(n, height, width, channels)
    _call("first_images", coming, flat, by_images, n, height, width, channels, filters)
    return _columns(by_images)


def convolution_parameters(images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of a convolution by its weight, (filters, c, 3, 3), and bias, (filters,)."""
    if images.shape[1] % LANES:
        total, channels = _first_parameters(images, gradient), images.shape[1]
        return _as_weight(total[:-1], channels), total[-1]
    return convolution_weight(images, gradient), _rows(gradient).sum((0, 1, 2))


def convolution_weight(images: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of a convolution by its weight alone, (filters, c, 3, 3)."""
    if images.shape[1] % LANES:
        return _as_weight(_first_parameters(images, gradient)[:-1], images.shape[1])
    x, coming = _rows(images), _rows(gradient)
    n, height, width, channels = x.shape
    filters = coming.shape[3]
    total = x.new_zeros(36, channels, filters)
    room, at_once = _room(x, filters)
    with _products_on_as_many_threads():
        _call(
            "convolution_kernel", x, coming, total, room, _products() or 0,
            n, height, width, channels, filters, at_once,
        )  # fmt: skip
    return _as_weight(BOTH_WAYS.T @ total.view(36, -1), channels)


def _first_parameters(images: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of a convolution of few channels by its weight and bias, (9 c + 1, filters)."""
    x, coming = _rows(images), _rows(gradient)
    n, height, width, channels = x.shape
    filters = coming.shape[3]
    sums = x.new_empty(n * -(-height // STRIP), 9 * channels + 1, filters)
    _call("first_weight", x, coming, sums, n, height, width, channels, filters)
    return sums.sum(0)


def _as_weight(rows: Tensor, channels: int) -> Tensor:
    """(9 c, filters), or the same numbers in another shape, as (filters, c, 3, 3)."""
    return rows.view(3, 3, channels, -1).permute(3, 2, 0, 1).contiguous()


def norm_relu_pool(images: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """What ``medistill.nets.blocks.norm_relu_pool`` gives, (n, c, h / 2, w / 2), and of each channel of each image
    the mean and 1 / √(variance + epsilon), both (n, c).
    """
    x = _rows(images)
    n, height, width, channels = x.shape
    out = x.new_empty(n, height // 2, width // 2, channels)
    mean, root = x.new_empty(n, channels), x.new_empty(n, channels)
    _call(
        "norm_relu_pool", x, weight.contiguous(), bias.contiguous(), out, mean, root, float(epsilon),
        n, height, width, channels,
    )  # fmt: skip
    return _columns(out), mean, root


def norm_relu_pool_gradient(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, root: Tensor, coming: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by images, weight and bias; arguments as given to and by :func:`norm_relu_pool`."""
    x = _rows(images)
    n, height, width, channels = x.shape
    by_images, total, along = torch.empty_like(x), x.new_empty(n, channels), x.new_empty(n, channels)
    _call(
        "norm_relu_pool_gradient", x, weight.contiguous(), bias.contiguous(), mean, root, _rows(coming), by_images,
        total, along, n, height, width, channels,
    )  # fmt: skip
    return _columns(by_images), along.sum(0), total.sum(0)


def norm_relu_pool_second(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, root: Tensor, coming: Tensor,
    of_images: Tensor, of_weight: Tensor, of_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by images, weight and ``coming`` of what :func:`norm_relu_pool_gradient` gives times ``of_...``."""
    x = _rows(images)
    n, height, width, channels = x.shape
    given, asked = _rows(coming), _rows(of_images)
    by_x, by_weight, by_coming = torch.empty_like(x), x.new_empty(n, channels), torch.empty_like(given)
    _call(
        "norm_relu_pool_second", x, weight.contiguous(), bias.contiguous(), mean, root, given,
        asked, of_weight.contiguous(), of_bias.contiguous(), by_x, by_weight, by_coming, n, height, width, channels,
    )  # fmt: skip
    return _columns(by_x), by_weight.sum(0), _columns(by_coming)


def _points_of(weight: Tensor, turned: bool) -> Tensor:
    """A kernel, or the one of the gradient by images, at the points; kept for weights that are not learned, which
    many batches meet, for as long as they are there and unchanged.
    """
    if weight.requires_grad or weight.is_inference():
        return _kernel_points(weight.flip(2, 3).transpose(0, 1) if turned else weight)
    kept = _kept[turned].get(weight)
    if kept is None or kept[0] != weight._version:
        kept = weight._version, _kernel_points(weight.flip(2, 3).transpose(0, 1) if turned else weight)
        _kept[turned][weight] = kept
    return kept[1]


_kept: tuple[WeakIdKeyDictionary, WeakIdKeyDictionary] = WeakIdKeyDictionary(), WeakIdKeyDictionary()
"""Of weights and of weights turned: which version of them, and its points."""


def _kernel_points(weight: Tensor) -> Tensor:
    """(filters, c, 3, 3) at the points, (36, c, filters)."""
    filters, channels = weight.shape[:2]
    return (BOTH_WAYS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, filters)


def _room(x: Tensor, filters: int) -> tuple[Tensor, int]:
    """Room for the points of images (n, h, w, c) and of what filters make of them, and for how many of them."""
    n, height, width, channels = x.shape
    tiles = height * width // 16
    at_once = min(n, max(1, CHUNK_BYTES // (36 * 4 * tiles * max(channels, filters))))
    return x.new_empty(36 * (at_once * tiles * (channels + filters) + 2 * SPACE)), at_once
