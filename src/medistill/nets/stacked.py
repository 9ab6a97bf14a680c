"""Several networks trained at once by the one recipe, as one network with a further dimension.

A GPU is kept busy by few large steps, not by many small ones. Each network has its own images, order, changes
and key, as if it were trained alone, so that it comes out the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medistill.augment import augment_each, sample_augmentation
from medistill.config import Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.keys import Key
from medistill.nets.bank import PixelBank
from medistill.nets.convnet import Parameters
from medistill.nets.training import AdamW, AfterStep, BatchSampler, precision_of, steps_for, training_targets
from medistill.nets.zoo import Network
from medistill.tasks.task import Task


def train_stacked(
    network: Network,
    parts: Sequence[TensorSplit],
    task: Task,
    normalisation: Normalisation,
    recipe: Recipe,
    keys: Sequence[Key],
    device: torch.device,
    after_step: AfterStep | None = None,
) -> Parameters:
    """Train as many networks as there are keys, from new parameters.

    Args:
        network: their shape; without running means, which do not stack.
        parts: training images of each; all hold as many images, and all or none have soft labels. A part that
            comes again is kept once.
        task: what the targets mean.
        normalisation: how pixels are normalised and which mirror images are allowed.
        recipe: the schedule.
        keys: as for ``medistill.nets.training.Training``, one for each network.
        device: where.
        after_step: called with the number of steps done and all parameters, the networks in the first dimension.

    Returns:
        The parameters after the last step, each (networks, ...).

    Raises:
        ValueError: a network with running means.
    """
    if network.buffers:
        raise ValueError("networks with running means cannot be trained together")
    distinct = {id(part): part for part in parts}
    starts = dict(zip(distinct, np.cumsum([0, *(len(p) for p in distinct.values())]).tolist(), strict=False))
    offsets = torch.tensor([starts[id(part)] for part in parts]).view(-1, 1)
    pixels = [part.pixels for part in distinct.values()]
    bank = PixelBank(pixels[0] if len(pixels) == 1 else np.concatenate(pixels), device)
    targets = torch.cat([training_targets(part) for part in distinct.values()]).to(device)
    new = [network.parameters(key.child("parameters")) for key in keys]
    parameters = {n: torch.stack([initial[n] for initial in new]).to(device).requires_grad_(True) for n in new[0]}
    steps, batch = steps_for(recipe, len(parts[0])), min(recipe.batch_size, len(parts[0]))
    optimiser = AdamW(parameters, recipe, steps)
    samplers = [BatchSampler(len(part), batch, key) for part, key in zip(parts, keys, strict=True)]
    together = torch.func.vmap(partial(network.logits, training=True))
    for step in range(steps):
        rows = (torch.stack([sampler.next() for sampler in samplers]) + offsets).flatten()
        x = normalisation.normalise(bank[rows])
        if recipe.augment:
            drawn = [sample_augmentation(batch, key.child("augment", step).generator(), x.ndim - 2) for key in keys]
            x = augment_each(x, torch.cat(drawn), normalisation.flips)
        with precision_of(recipe, device):
            logits: Tensor = together(parameters, x.unflatten(0, (len(keys), batch))).flatten(0, 1).float()
        # The mean over all, times the networks, is the sum of what each has alone.
        loss = task.loss(logits, targets[rows.to(device)], recipe.label_smoothing)
        optimiser.step([len(keys) * loss])
        if after_step is not None:
            after_step(step + 1, parameters)
    return {name: tensor.detach() for name, tensor in parameters.items()}


def unstack(parameters: Parameters, networks: int) -> list[Parameters]:
    """The parameters of each network, from those of all together."""
    return [{name: tensor[i].detach() for name, tensor in parameters.items()} for i in range(networks)]
