"""The loops that ``bench.py`` compares: ours, and plain ones written from the papers.

The plain loops do what the published programs do: a new network of torch's modules at each step,
a loop over classes with one batch of real and one of synthetic images each, nothing kept. Both
sides get the same problem, the same first images, networks of the same width, real batches of the same size and
the same kinds of augmentation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medistill.augment import for_training, siamese
from medistill.config import Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.distil import loop
from medistill.distil.method import State, make_method
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import DistillationProblem
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.jobs import Job
from medistill.evaluation.workers import run_all
from medistill.keys import Key
from medistill.nets.training import one_cycle, steps_for
from medistill.parallel import Workers
from medistill.runtime import own_cores
from medistill.tasks.task import Task

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from reference import distribution_matching, gradient_matching

Scores = list[float]
AfterStep = Callable[[int, Tensor], bool]
"""Given the number of steps done and the images, says whether to go on."""

FILTERS, REAL_BATCH, IMAGE_RATE, MOMENTUM = 64, 256, 1.0, 0.5
DM = {"name": "dm", "filters": FILTERS, "real_batch": REAL_BATCH}


def plain_dm(
    problem: DistillationProblem,
    steps: int,
    after_step: AfterStep | None = None,
    seed: int = 0,
    start: str = "noise",
) -> Tensor:
    """Distribution matching as published; returns the images."""
    stored = first_images(problem, {**DM, "start": start}, seed).requires_grad_(True)
    optimiser = torch.optim.SGD([stored], lr=IMAGE_RATE, momentum=MOMENTUM)
    for step in range(steps):
        key = Key(seed).child("plain", step)
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1_000_003 + step)
            model = distribution_matching.convnet(problem.channels, problem.shape[0], FILTERS)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        seen = problem.decode(stored)
        synthetic = [seen[problem.synthetic(s)] for s in range(problem.strata)]
        real = [real_images(problem, s, key.child("real", s)) for s in range(problem.strata)]
        flips = problem.normalisation.flips
        changes = [siamese(key.child("change", s).generator(), flips) for s in range(problem.strata)]
        loss = distribution_matching.loss(model, synthetic, real, lambda s, x, changes=changes: changes[s](x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if after_step is not None and not after_step(step + 1, stored.detach()):
            break
    return stored.detach()


def plain_dc(problem: DistillationProblem, networks: int, outer: int, inner: int) -> Tensor:
    """Gradient matching as published, without augmentation; returns the images."""
    stored = first_images(problem, {"name": "dc", "filters": FILTERS}, 0).requires_grad_(True)
    optimiser = torch.optim.SGD([stored], lr=IMAGE_RATE, momentum=MOMENTUM)
    targets = problem.targets.float()
    for number in range(networks):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = gradient_matching.convnet(problem.channels, problem.shape[0], problem.outputs, FILTERS)
        for step in range(outer):
            key = Key(0).child(number, step)
            seen = problem.decode(stored)
            rows = [problem.synthetic(s) for s in range(problem.strata)]
            synthetic = [(seen[own], targets[own]) for own in rows]
            real = [
                (images := real_images(problem, s, key.child(s)), targets[own][:1].expand(len(images), -1))
                for s, own in enumerate(rows)
            ]
            loss = gradient_matching.loss(model, synthetic, real, lambda _s, x: x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            batches = [(problem.decode(stored.detach()), targets)] * (inner if step < outer - 1 else 0)
            gradient_matching.train(model, batches, 0.01)
    return stored.detach()


def first_images(problem: DistillationProblem, settings: dict[str, Any], seed: int) -> Tensor:
    """What a method begins with, in the stored size."""
    return loop.start(make_method(settings), problem, Key(seed)).images


def real_images(problem: DistillationProblem, stratum: int, key: Key) -> Tensor:
    """A batch of real images of a stratum."""
    places = torch.randperm(problem.real_per_stratum[stratum], generator=key.generator())[:REAL_BATCH]
    return problem.real.queried_by(("draw",)).draw(stratum, places).value.images


def random_images(problem: DistillationProblem) -> TensorSplit:
    """Random real images, as many as the problem asks for."""
    images = first_images(problem, {"name": "random"}, 0)
    return TensorSplit(problem.quantise(problem.decode(images)).numpy(), problem.targets.numpy())


def ours(
    problem: DistillationProblem,
    settings: dict[str, Any],
    after_step: AfterStep | None = None,
    seed: int = 0,
    optimiser: Optimiser | None = None,
) -> Tensor:
    """Our loop, on the cores that ``distill`` would take; returns the images."""
    problem = problem.worked_by(Workers(own_cores()))
    method, key = make_method(settings).for_this_machine(), Key(seed)
    state = loop.start(method, problem, key, optimiser)

    class Enough(Exception):
        """Somebody saw enough."""

    def look(state: State, _losses: list[float]) -> None:
        if after_step is not None and not after_step(state.step, state.images.detach()):
            raise Enough

    with suppress(Enough):
        loop.run(method, problem, key, state, look, optimiser=optimiser)
    return state.images.detach()


def plain_training(
    data: TensorSplit, asked: TensorSplit, task: Task, normalisation: Normalisation, recipe: Recipe, seed: int
) -> float:
    """One network on one set of images by the evaluation's recipe, out of torch's modules, on all threads.

    Returns:
        Its balanced accuracy on the images asked about, which it sees once, as published programs do.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = gradient_matching.convnet(data.channels, data.shape[0], task.outputs, recipe.width)
    pixels, labels = torch.from_numpy(data.pixels), torch.from_numpy(task.labels(data.targets))
    steps = steps_for(recipe, len(data))
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps))
    for step in range(steps):
        draw = Key(seed).child(step).generator()
        rows = torch.randint(len(data), (recipe.batch_size,), generator=draw)
        x = for_training(normalisation.normalise(pixels[rows]), draw, normalisation.flips)
        error = functional.cross_entropy(model(x), labels[rows], label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    tested = torch.from_numpy(asked.pixels)
    with torch.no_grad():
        said = [model(normalisation.normalise(x)).softmax(1) for x in tested.split(recipe.batch_size)]
    return task.scores(torch.cat(said).numpy(), asked.targets)["balanced_accuracy"]


def our_training(
    data: TensorSplit, asked: TensorSplit, task: Task, normalisation: Normalisation, recipe: Recipe, count: int
) -> Scores:
    """So many networks side by side, as ``evaluate`` trains them; balanced accuracy of each on the images asked."""
    splits = {data.digest: data, asked.digest: asked}
    names = list(splits)
    common = (names[0], names[-1], None, normalisation, task.kind, task.outputs, recipe, 2, 0)
    jobs = [Job(*common, index) for index in range(count)]
    found: dict[int, float] = {}

    def done(job: Job, run: TrainedRun) -> None:
        found[job.index] = task.scores(run.probabilities, asked.targets)["balanced_accuracy"]

    run_all(jobs, splits, lambda _images: None, done)
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
