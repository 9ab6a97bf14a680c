"""Training steps by torch's own optimiser and schedule."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medistill.config import Recipe
from medistill.nets.training import one_cycle

Loss = Callable[[dict[str, Tensor]], Tensor]


def steps(learned: dict[str, Tensor], recipe: Recipe, losses: Sequence[Loss]) -> Iterator[dict[str, Tensor]]:
    """Take a step down each loss; what is learned, after each."""
    optimiser = torch.optim.AdamW(learned.values(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, len(losses)))
    for loss in losses:
        optimiser.zero_grad()
        loss(learned).backward()
        optimiser.step()
        schedule.step()
        yield learned
