"""Jobs on a GPU: networks that are trained alike are trained together, the others one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from medistill.evaluation.cache import Run
from medistill.evaluation.jobs import Job, Parts, Watch, do, keep, kept
from medistill.files import canonical_json
from medistill.nets.convnet import Parameters
from medistill.nets.stacked import taken_apart, train_stacked

AT_ONCE = 32
"""Networks trained together at most."""


def do_stacked(
    jobs: Sequence[Job],
    parts: Parts,
    advance: Callable[[int], None],
    done: Callable[[Job, Run], None],
    device: torch.device,
) -> None:
    """Do all jobs on one device; arguments as for ``medistill.evaluation.workers.run_all``."""
    alike: dict[object, list[Job]] = defaultdict(list)
    for job in jobs:
        if kept(job, device) is not None or job.make_network(parts).buffers:
            done(job, do(job, parts, advance, device))
        else:
            alike[_how(job, parts)].append(job)
    for own in alike.values():
        for start in range(0, len(own), AT_ONCE):
            for job, run in _together(own[start : start + AT_ONCE], parts, advance, device):
                done(job, run)


def _how(job: Job, parts: Parts) -> object:
    """What must be equal for networks to be trained together."""
    part, known = parts[job.train], job.as_json()
    recipe = {name: known[name] for name in ("statistics", "classes", "recipe")}
    return (job.network, canonical_json(recipe), part.pixels.shape, part.soft_labels is None)


def _together(
    jobs: Sequence[Job], parts: Parts, advance: Callable[[int], None], device: torch.device
) -> Iterator[tuple[Job, Run]]:
    watches = [Watch(job, parts) for job in jobs]
    work = sum(watch.work for watch in watches)

    def after_step(step: int, parameters: Parameters) -> None:
        advance(work)
        if any(step in watch.points for watch in watches):
            for watch, own in zip(watches, taken_apart(parameters, len(jobs)), strict=True):
                watch(step, own)

    first = jobs[0]
    trained = train_stacked(
        first.make_network(parts), [parts[job.train] for job in jobs], first.statistics, first.recipe,
        [job.key for job in jobs], device, after_step,
    )  # fmt: skip
    for job, watch, parameters in zip(jobs, watches, taken_apart(trained, len(jobs)), strict=True):
        keep(job, parameters)
        yield job, watch.asked(parameters)
