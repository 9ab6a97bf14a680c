"""How long training will take on this machine, told before it starts: measured on a few steps, then counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medistill.config import Recipe
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.evaluation.portions import portions, seconds_of
from medistill.evaluation.workers import OVERHEAD
from medistill.keys import Key
from medistill.nets.training import Training, images_seen, predict_probabilities, steps_for
from medistill.nets.zoo import make_network
from medistill.parallel import SpareCores, layers_on, one_thread
from medistill.runtime import device, usable_cores, wait_for
from medistill.tasks.task import Task

WARMING, MEASURED = 2, 4
"""Steps that do not count, as the first ones fetch memory, and steps that do."""

SIDE_BY_SIDE = 1.1
"""Times what a step takes alone that it takes beside others, which share memory and caches (0.94 to 1.2 measured on
two cores, as processor time of two workers over that of one)."""


class Pace:
    """Seconds that the recipe's network takes for an image on one thread of this machine, measured when it is made,
    and what share of them it takes where all other cores are idle.

    Args:
        data: images of the kind to train on.
        task, normalisation, recipe: how.
        architecture: of the network.
    """

    def __init__(
        self,
        data: TensorSplit,
        task: Task,
        normalisation: Normalisation,
        recipe: Recipe,
        architecture: str = "convnet",
    ) -> None:
        self.recipe, batch = recipe, min(recipe.batch_size, len(data))
        network = make_network(architecture, data.channels, data.shape, task.outputs, recipe.width, recipe.stem or 0)
        steps = WARMING + 2 * MEASURED
        long = recipe.model_copy(update={"min_steps": steps, "max_steps": steps})
        with one_thread():
            training = Training(network, data, task, normalisation, long, Key(0).child("pace"), device())
            training.run(until=WARMING)
            wait_for(device())
            started = time.monotonic()
            training.run(until=WARMING + MEASURED)
            wait_for(device())
            took = time.monotonic() - started
            self.training = took / (MEASURED * (batch + OVERHEAD))
            started = time.monotonic()
            cores = min(SpareCores.MOST, SpareCores().cores)
            with layers_on(cores):
                parameters = training.run()
            wait_for(device())
            alone = (time.monotonic() - started) / took
            self.alone = alone if cores > 1 and alone < SpareCores.WORTH else 1.0
            asked = data.pixels[: 2 * batch]
            started = time.monotonic()
            predict_probabilities(network, parameters, asked, task, normalisation)
            self.asking = (time.monotonic() - started) / len(asked)

    def seconds(self, sizes: Sequence[int], asked: int, max_workers: int | None = None) -> float:
        """Of wall clock, to train a network on each of so many images and to ask it about others.

        Args:
            sizes: training images of each network.
            asked: images each is asked about.
            max_workers: networks trained at once, at most; None: one for each core.
        """
        return self.spread([effort(self.recipe, n) for n in sizes], asked, max_workers)

    def spread(self, efforts: Sequence[int], asked: int, max_workers: int | None = None) -> float:
        """As :meth:`seconds`, of trainings of that :func:`effort`, by any recipe of that width."""
        took = [trained * self.training + asked * self.asking for trained in efforts]
        count = min(len(took), max_workers or usable_cores())
        if device().type != "cpu":
            return sum(took)
        if count < 2:
            return self.alone * sum(took)
        return SIDE_BY_SIDE * seconds_of(portions(took, count), took, count, self.alone / SIDE_BY_SIDE)


def effort(recipe: Recipe, images: int) -> int:
    """What training on so many images takes, in images that go through a network; a step costs as much as a few."""
    return images_seen(recipe, images) + OVERHEAD * steps_for(recipe, images)
