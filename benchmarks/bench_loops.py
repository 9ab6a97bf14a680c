"""The loops that ``bench.py`` compares: ours, and plain ones written from the papers.

The plain loops do what the published programs do: a new network of torch's modules at each step,
a loop over classes with one batch of real and one of synthetic images each, nothing kept. Both
sides get the same problem, networks of the same width, real batches of the same size and the same
kinds of augmentation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import reference_dc
import reference_dm
import torch
from torch import Tensor
from torch.nn import functional

from medistill.augment import for_training, siamese
from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.distil import loop
from medistill.distil.method import State, make_method
from medistill.distil.problem import Problem
from medistill.evaluation.cache import Run, part_digest
from medistill.evaluation.jobs import Job
from medistill.evaluation.metrics import metrics
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.pixels import normalise
from medistill.nets.training import Statistics, one_cycle, steps_for

Scores = list[float]
AfterStep = Callable[[int, Tensor], bool]
"""Given the number of steps done and the images, says whether to go on."""

FILTERS, REAL_BATCH, IMAGE_RATE, MOMENTUM = 64, 256, 1.0, 0.5
DM = {"name": "dm", "filters": FILTERS, "real_batch": REAL_BATCH}


def plain_dm(problem: Problem, steps: int, after_step: AfterStep | None = None, seed: int = 0) -> Tensor:
    """Distribution matching as published; returns the images."""
    stored = problem.encode(problem.random_images(Key(seed))).requires_grad_(True)
    optimiser = torch.optim.SGD([stored], lr=IMAGE_RATE, momentum=MOMENTUM)
    for step in range(steps):
        key = Key(seed).child("plain", step)
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1_000_003 + step)
            model = reference_dm.convnet(problem.shape[0], problem.shape[1], FILTERS)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        seen = problem.decode(stored)
        made = [seen[problem.made(c)] for c in range(problem.classes)]
        real = [
            problem.of_class(c, problem.draw(c, REAL_BATCH, key.child("real", c))) for c in range(problem.classes)
        ]
        changes = [siamese(key.child("change", c).generator(), problem.flips) for c in range(problem.classes)]
        loss = reference_dm.loss(model, made, real, lambda c, x, changes=changes: changes[c](x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if after_step is not None and not after_step(step + 1, stored.detach()):
            break
    return stored.detach()


def plain_dc(problem: Problem, networks: int, outer: int, inner: int) -> None:
    """Gradient matching as published, without augmentation."""
    images = problem.random_images(Key(0)).requires_grad_(True)
    optimiser = torch.optim.SGD([images], lr=IMAGE_RATE, momentum=MOMENTUM)
    for number in range(networks):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = reference_dc.convnet(problem.shape[0], problem.shape[1], problem.classes, FILTERS)
        for step in range(outer):
            key = Key(0).child(number, step)
            made = [images[problem.made(c)] for c in range(problem.classes)]
            real = [problem.of_class(c, problem.draw(c, REAL_BATCH, key.child(c))) for c in range(problem.classes)]
            loss = reference_dc.loss(model, made, real, lambda _c, x: x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            batches = [(images.detach(), problem.labels)] * (inner if step < outer - 1 else 0)
            reference_dc.train(model, batches, 0.01)


def ours(problem: Problem, settings: dict[str, Any], after_step: AfterStep | None = None, seed: int = 0) -> Tensor:
    """Our loop; returns the images."""
    method, key = make_method(settings).for_this_machine(), Key(seed)
    state = loop.start(method, problem, key)

    class Enough(Exception):
        """Somebody saw enough."""

    def look(state: State, _loss: float) -> None:
        if after_step is not None and not after_step(state.step, state.images.detach()):
            raise Enough

    with suppress(Enough):
        loop.run(method, problem, key, state, look)
    return state.images.detach()


def plain_training(part: Part, exam: Part, statistics: Statistics, recipe: Recipe, classes: int, seed: int) -> float:
    """One network on one set of images by the evaluation's recipe, out of torch's modules, on all threads.

    Returns:
        Its balanced accuracy on the exam, about which it is asked once as published programs do.
    """
    channels, side = part.pixels.shape[1:3]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = reference_dc.convnet(channels, side, classes, recipe.width)
    pixels, labels = torch.from_numpy(part.pixels), torch.from_numpy(part.labels)
    steps = steps_for(recipe, len(part))
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps))
    for step in range(steps):
        draw = Key(seed).child(step).generator()
        rows = torch.randint(len(part), (recipe.batch,), generator=draw)
        x = for_training(normalise(pixels[rows], statistics.mean, statistics.std), draw, statistics.flips)
        error = functional.cross_entropy(model(x), labels[rows], label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    asked = torch.from_numpy(exam.pixels)
    with torch.no_grad():
        said = [model(normalise(x, statistics.mean, statistics.std)).softmax(1) for x in asked.split(recipe.batch)]
    return metrics(torch.cat(said).numpy(), exam.labels)["balanced_accuracy"]


def our_training(part: Part, exam: Part, statistics: Statistics, recipe: Recipe, classes: int, count: int) -> Scores:
    """So many networks side by side, as ``evaluate`` trains them; balanced accuracy of each on the exam."""
    parts = {part_digest(part): part, part_digest(exam): exam}
    names = list(parts)
    jobs = [Job(names[0], names[-1], None, statistics, classes, recipe, 2, 0, index) for index in range(count)]
    found: dict[int, float] = {}

    def done(job: Job, run: Run) -> None:
        found[job.index] = metrics(run.probabilities, exam.labels)["balanced_accuracy"]

    run_all(jobs, parts, lambda _images: None, done)
    return [found[index] for index in range(count)]


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def say(line: str) -> None:
    """Print it at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def set_beside(data: Path, name: str) -> Path | None:
    """The file of a set in the same folder; where it is not, that is said and the set left out."""
    file = data.parent / f"{name}.npz"
    if file.exists():
        return file
    say(f"{name}: left out, {file} is not there")
    return None
