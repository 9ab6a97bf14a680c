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
from torch.nn import functional

from medistill.augment import changed_each, drawn_changes
from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.pixels import Pixels, normalise
from medistill.nets.training import AfterStep, Descent, Order, Statistics, precision_of, steps_for
from medistill.nets.zoo import Network


def train_stacked(
    network: Network,
    parts: Sequence[Part],
    statistics: Statistics,
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
        statistics: how pixels are normalised and which mirror images are allowed.
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
    bank = Pixels(pixels[0] if len(pixels) == 1 else np.concatenate(pixels), device)
    soft = parts[0].soft_labels is not None
    said = [part.labels if part.soft_labels is None else part.soft_labels for part in distinct.values()]
    labels = torch.from_numpy(np.concatenate(said)).to(device)
    new = [network.parameters(key.child("parameters")) for key in keys]
    parameters = {n: torch.stack([own[n] for own in new]).to(device).requires_grad_(True) for n in new[0]}
    steps, batch = steps_for(recipe, len(parts[0])), min(recipe.batch, len(parts[0]))
    descent = Descent(parameters, recipe, steps)
    orders = [Order(len(part), batch, key) for part, key in zip(parts, keys, strict=True)]
    together = torch.func.vmap(partial(network.logits, training=True))
    smoothing = 0.0 if soft else recipe.label_smoothing
    for step in range(steps):
        rows = (torch.stack([order.next() for order in orders]) + offsets).flatten()
        x = normalise(bank[rows], statistics.mean, statistics.std)
        if recipe.augment:
            drawn = [drawn_changes(batch, key.child("augment", step).generator()) for key in keys]
            x = changed_each(x, torch.cat(drawn), statistics.flips)
        with precision_of(recipe, device):
            scores: Tensor = together(parameters, x.unflatten(0, (len(keys), batch))).flatten(0, 1).float()
        # The mean over all, times the networks, is the sum of what each has alone.
        loss = functional.cross_entropy(scores, labels[rows.to(device)], label_smoothing=smoothing)
        descent.step([len(keys) * loss])
        if after_step is not None:
            after_step(step + 1, parameters)
    return {name: tensor.detach() for name, tensor in parameters.items()}


def taken_apart(parameters: Parameters, networks: int) -> list[Parameters]:
    """The parameters of each network, from those of all together."""
    return [{name: tensor[i].detach() for name, tensor in parameters.items()} for i in range(networks)]
