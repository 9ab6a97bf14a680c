"""Jobs on a GPU: networks that are trained alike are trained together, the others one after the other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.jobs import Job, Splits, Watch, do_job, keep_network, kept_network
from medistill.files import canonical_json
from medistill.nets.convnet import Parameters
from medistill.nets.stacked import train_stacked, unstack
from medistill.nets.zoo import Network

AT_ONCE = 32
"""Networks trained together at most."""

SHARE = 0.5
"""Of a GPU's free memory that what is in networks may take; images and the steps' own take the rest."""


def do_stacked(
    jobs: Sequence[Job],
    splits: Splits,
    advance: Callable[[int], None],
    done: Callable[[Job, TrainedRun], None],
    device: torch.device,
) -> None:
    """Do all jobs on one device; arguments as for ``medistill.evaluation.workers.run_all``."""
    alike: dict[object, list[Job]] = defaultdict(list)
    for job in jobs:
        if kept_network(job, device) is not None or job.make_network(splits).buffers:
            done(job, do_job(job, splits, advance, device))
        else:
            alike[_how(job, splits)].append(job)
    for group in alike.values():
        first = group[0]
        batch = min(first.recipe.batch_size, len(splits[first.train]))
        size = together_at_most(first.make_network(splits), batch, _free_mb(device))
        for start in range(0, len(group), size):
            some = group[start : start + size]
            if size == 1:  # it divides its batches where they are too large
                done(some[0], do_job(some[0], splits, advance, device))
            else:
                for job, run in _together(some, splits, advance, device):
                    done(job, run)


def together_at_most(network: Network, batch: int, free_mb: float) -> int:
    """How many networks may be trained together: as many as the device has memory for, by their images' inner values.

    Args:
        network: their shape.
        batch: images of each in a step.
        free_mb: memory that the device has, in MB (10⁶ bytes).
    """
    image_mb = network.activation_mb
    return AT_ONCE if image_mb is None else max(1, int(min(AT_ONCE, SHARE * free_mb / (batch * image_mb))))


def _free_mb(device: torch.device) -> float:
    """Memory that nobody has, or that torch keeps from earlier work."""
    if device.type != "cuda":
        return math.inf
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + kept) / 1e6


def _how(job: Job, splits: Splits) -> object:
    """What must be equal for networks to be trained together."""
    data, settings = splits[job.train], job.as_json()
    recipe = {name: settings[name] for name in ("normalisation", "kind", "outputs", "recipe")}
    return (job.architecture, canonical_json(recipe), data.pixels.shape, data.soft_labels is None)


def _together(
    jobs: Sequence[Job], splits: Splits, advance: Callable[[int], None], device: torch.device
) -> Iterator[tuple[Job, TrainedRun]]:
    watches = [Watch(job, splits) for job in jobs]
    work = sum(watch.work for watch in watches)

    def after_step(step: int, parameters: Parameters) -> None:
        advance(work)
        if any(step in watch.points for watch in watches):
            for watch, network_parameters in zip(watches, unstack(parameters, len(jobs)), strict=True):
                watch(step, network_parameters)

    first = jobs[0]
    trained = train_stacked(
        first.make_network(splits), [splits[job.train] for job in jobs], first.task, first.normalisation,
        first.recipe, [job.key for job in jobs], device, after_step,
    )  # fmt: skip
    for job, watch, parameters in zip(jobs, watches, unstack(trained, len(jobs)), strict=True):
        keep_network(job, parameters)
        yield job, watch.asked(parameters)
