"""How much faster a ConvNet in bfloat16 is channels last than by torch's own functions in the usual order, on a CPU.

python benchmarks/bench_blocks.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import bench_loops as loops
import torch
from torch.nn import functional

from medistill.keys import Key
from medistill.nets import blocks
from medistill.nets.convnet import ConvNet
from medistill.runtime import prepare_torch

ROUNDS = 9


def main() -> None:
    prepare_torch()
    network = ConvNet(3, 28, 28, 8, loops.FILTERS)
    fixed = {name: tensor.bfloat16() for name, tensor in network.parameters(Key(0)).items()}
    learned = {name: tensor.clone().requires_grad_(True) for name, tensor in fixed.items()}
    images = torch.randn(loops.REAL_BATCH, 3, 28, 28, generator=Key(1).generator()).bfloat16()
    made, labels = images[:80].clone().requires_grad_(True), torch.arange(len(images)) % 8

    def by_parameters() -> object:
        return torch.autograd.grad(
            functional.cross_entropy(network.logits(learned, images), labels), list(learned.values())
        )

    for name, work in (
        ("forward", lambda: [network.embed(fixed, part) for part in images.split(64)]),
        ("gradient by parameters", by_parameters),
        ("gradient by images", lambda: torch.autograd.grad(network.embed(fixed, made).square().sum(), made)),
    ):
        ratios = sorted(ratio(work) for _ in range(ROUNDS))
        loops.say(f"{name}: {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def ratio(work: Callable[[], object]) -> float:
    """Seconds in the usual order over those channels last, each after one that does not count."""
    fast, taken = blocks.usable, []
    for usable in (lambda _images: False, fast):
        blocks.usable = usable
        work()
        taken.append(loops.seconds(work))
    return taken[0] / taken[1]


if __name__ == "__main__":
    main()
