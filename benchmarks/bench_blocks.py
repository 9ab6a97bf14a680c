"""How much faster a CPU computes a ConvNet by what is our own than by torch's own functions in the usual order.

In float32 that is compiled, in bfloat16, where the processor computes in it, it is channels last.

    python benchmarks/bench_blocks.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import bench_loops as loops
import torch
from torch.nn import functional

from medistill.keys import Key
from medistill.nets import blocks, kernels
from medistill.nets.convnet import ConvNet
from medistill.runtime import has_bfloat16, prepare_torch

ROUNDS = 9


def main() -> None:
    prepare_torch()
    if kernels.library() is None:
        loops.say("nothing is compiled for this processor: float32 is torch's own")
    for kind in (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,):
        compare(kind)


def compare(kind: torch.dtype) -> None:
    """Say how much faster, forward and both gradients, in medians of rounds with their range."""
    network = ConvNet(3, (28, 28), 8, loops.FILTERS)
    fixed = {name: tensor.to(kind) for name, tensor in network.parameters(Key(0)).items()}
    learned = {name: tensor.clone().requires_grad_(True) for name, tensor in fixed.items()}
    images = torch.randn(loops.REAL_BATCH, 3, 28, 28, generator=Key(1).generator()).to(kind)
    synthetic, labels = images[:80].clone().requires_grad_(True), torch.arange(len(images)) % 8

    def by_parameters() -> object:
        return torch.autograd.grad(
            functional.cross_entropy(network.logits(learned, images), labels), list(learned.values())
        )

    loops.say(str(kind).removeprefix("torch."))
    for name, work in (
        ("forward", lambda: [network.embed(fixed, part) for part in images.split(64)]),
        ("gradient by parameters", by_parameters),
        (
            "gradient by images",
            lambda: torch.autograd.grad(network.embed(fixed, synthetic).square().sum(), synthetic),
        ),
    ):
        ratios = sorted(ratio(work) for _ in range(ROUNDS))
        loops.say(f"  {name}: {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def ratio(work: Callable[[], object]) -> float:
    """Seconds by torch's functions over those by ours, each after one that does not count."""
    own, taken = (blocks.usable, kernels.library), []
    for usable, library in ((lambda _images, _weight: False, lambda: None), own):
        blocks.usable, kernels.library = usable, library
        work()
        taken.append(loops.seconds(work))
    return taken[0] / taken[1]


if __name__ == "__main__":
    main()
