"""The only way from a method to real images: named queries, each answered with the rows and patients it touched.

A method declares in its :class:`~medistill.distil.method.MethodInfo` which queries it needs, and gets no other
answered. Nothing else in ``medistill.distil`` reaches real pixels; a test over the syntax tree keeps it so. With
exact answers this is what distillation always did. A mechanism that answers some queries with counted noise makes of
the same method a private one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medistill.data.image import Normalisation, Shape
from medistill.data.preprocess import TensorSplit
from medistill.data.sampling import serving_order
from medistill.keys import Key
from medistill.nets.bank import PixelBank
from medistill.parallel import Workers, summed
from medistill.tasks.task import Task

Query = Literal["mean", "total", "gradient", "embeddings", "draw", "training"]
"""What may be asked:

- ``mean``: mean of a statistic over images of a stratum,
- ``total``: weighted sum of a statistic over all images of a stratum,
- ``gradient``: what a function, as a gradient of a loss, gives for images of a stratum,
- ``embeddings``: what a function gives for each image of a stratum,
- ``draw``: images of a stratum themselves,
- ``training``: all images in batches, to train a network on.
"""

CHUNK = 64
"""Images given to a network at once where nothing of them is kept, few enough for the cache."""

Value = TypeVar("Value")

Rows = npt.NDArray[np.int64]

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What a query gives.

    Args:
        value: the answer.
        rows: which training images it was computed from.
        patient_of: the patient of every training image; None where unknown.
    """

    value: Value
    rows: Rows
    patient_of: npt.NDArray[np.str_] | None = None

    @property
    def patients(self) -> npt.NDArray[np.str_] | None:
        """Whose images were touched, each patient once; None where unknown."""
        return None if self.patient_of is None else np.unique(self.patient_of[self.rows])


@dataclass(frozen=True)
class Batch:
    """Real images: normalised (n, c, *spatial), and their targets (n, outputs)."""

    images: Tensor
    targets: Tensor


class RealImages:
    """The training images of a distillation, behind queries.

    Args:
        data: prepared training images; may lie in a file.
        task: what their targets mean, and so which strata there are.
        normalisation: how networks see them.
        device: where they are given.
        patients: (n,) whose they are, or None.
        micro_batch_size: how many go through a network together at most; None: as many as a query likes.
        workers: threads that do pieces of the work side by side.
    """

    def __init__(
        self,
        data: TensorSplit,
        task: Task,
        normalisation: Normalisation,
        device: torch.device,
        patients: npt.NDArray[np.str_] | None = None,
        micro_batch_size: int | None = None,
        workers: Workers = Workers(),  # noqa: B008
    ) -> None:
        self._data, self.task, self.normalisation, self.device = data, task, normalisation, device
        self._patients, self._micro_batch_size, self._workers = patients, micro_batch_size, workers
        self._strata = [np.flatnonzero(column) for column in task.membership(data.targets).T]
        self._bank = PixelBank(data.pixels, device)
        self._allowed: frozenset[Query] | None = None

    def _like(self) -> RealImages:
        """The same images, which are not copied."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def queried_by(self, queries: Sequence[Query]) -> RealImages:
        """The same images for whoever declares these queries; once some are granted, no others can be."""
        other = self._like()
        other._allowed = frozenset(queries) if self._allowed is None else self._allowed & frozenset(queries)
        return other

    def in_micro_batches(self, size: int | None) -> RealImages:
        """The same images, of which no more go through a network together."""
        other = self._like()
        other._micro_batch_size = size
        return other

    def worked_by(self, workers: Workers) -> RealImages:
        """The same images, by so many workers."""
        other = self._like()
        other._workers = workers
        return other

    # What may be known without a query

    @property
    def workers(self) -> Workers:
        """Threads that do pieces of the work side by side."""
        return self._workers

    @property
    def per_stratum(self) -> tuple[int, ...]:
        """Training images in each stratum."""
        return tuple(len(rows) for rows in self._strata)

    @property
    def strata_of_each(self) -> Rows:
        """In how many strata each image lies, (n,)."""
        return np.bincount(np.concatenate(self._strata), minlength=len(self))

    @property
    def serving_order(self) -> list[int]:
        """Strata in the order in which they choose images, where they overlap: the rarest first."""
        return serving_order(self.task.membership(self._data.targets))

    def places(self, stratum: int, rows: Rows) -> Tensor:
        """Where those of the rows that belong to a stratum lie within it."""
        return torch.from_numpy(np.flatnonzero(np.isin(self._strata[stratum], rows)))

    def __len__(self) -> int:
        return len(self._data)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self._data.channels

    @property
    def shape(self) -> Shape:
        """Lengths in space of an image."""
        return self._data.shape

    # Queries

    def mean(self, statistic: Callable[[Tensor], Tensor], stratum: int, count: int, key: Key) -> Answer[Tensor]:
        """Mean of a statistic over images of a stratum.

        Args:
            statistic: of normalised images (n, c, *spatial), (n, d).
            stratum: which.
            count: images, drawn without replacement, at most as many as there are.
            key: of the draw.

        Returns:
            (d,).
        """
        self._require("mean")
        rows = self._drawn(stratum, count, key)

        def of(chunk: Tensor) -> list[Tensor]:
            with torch.no_grad():
                return [statistic(self._images(chunk)).sum(0)]

        chunks = torch.from_numpy(rows).split(self._at_once(CHUNK))
        (total,) = summed(self._workers.map(of, chunks))
        return self._answer(total / len(rows), rows)

    def total(
        self, statistic: Callable[[Tensor], Tensor], stratum: int, weight: Callable[[Rows], Tensor], advance: Advance
    ) -> Answer[Tensor]:
        """Weighted sum of a statistic over all images of a stratum.

        Args:
            statistic: of normalised images (n, c, *spatial), (n, d).
            stratum: which.
            weight: of rows, (n,).
            advance: told how many images were seen.

        Returns:
            (d,) float64.
        """
        self._require("total")
        rows = self._strata[stratum]

        def of(chunk: Tensor) -> list[Tensor]:
            with torch.no_grad():
                found = statistic(self._images(chunk)).double()
            advance(len(chunk))
            return [(found * weight(chunk.numpy()).to(found)[:, None]).sum(0)]

        chunks = torch.from_numpy(rows).split(self._at_once(CHUNK)) if len(rows) else []
        total = summed(self._workers.map(of, chunks))
        return self._answer(total[0] if total else torch.zeros((), dtype=torch.float64), rows)

    def gradient(
        self, function: Callable[[Batch], list[Tensor]], stratum: int, count: int, key: Key
    ) -> Answer[list[Tensor]]:
        """What a function, as the gradient of a network's loss, gives for images of a stratum."""
        self._require("gradient")
        rows = self._drawn(stratum, count, key)
        return self._answer([g.detach() for g in function(self._batch(rows))], rows)

    def embeddings(
        self, function: Callable[[Tensor], Tensor], stratum: int, count: int | None = None, key: Key | None = None
    ) -> Answer[Batch]:
        """What a function gives for each image of a stratum, (n, d) in ``images`` of the batch, and their targets.

        Args:
            function: of normalised images.
            stratum: which.
            count: images drawn without replacement; all, in the order in which they lie, if None.
            key: of the draw.
        """
        self._require("embeddings")
        if (count is None) != (key is None):
            raise TypeError("a number of images is drawn by a key")
        rows = self._strata[stratum] if count is None or key is None else self._drawn(stratum, count, key)

        def of(chunk: Tensor) -> Tensor:
            with torch.no_grad():
                return function(self._images(chunk))

        chunks = torch.from_numpy(rows).split(self._at_once(CHUNK if self.device.type == "cpu" else len(rows)))
        embedded = torch.cat(list(self._workers.map(of, chunks)))
        return self._answer(Batch(embedded, self._targets(rows)), rows)

    def draw(self, stratum: int, places: Tensor) -> Answer[Batch]:
        """Images of a stratum themselves, by their places within it."""
        self._require("draw")
        rows = self._strata[stratum][places.cpu().numpy()]
        return self._answer(self._batch(rows), rows)

    def training(self, batch_size: int, key: Key) -> Iterator[Answer[Batch]]:
        """All images once, in batches, in an order drawn from the key."""
        self._require("training")
        order = torch.randperm(len(self), generator=key.generator())
        for rows in order.split(batch_size):
            yield self._answer(self._batch(rows.numpy()), rows.numpy())

    @property
    def digest(self) -> str:
        """What experts trained on the images are known by in the user's own cache."""
        self._require("training")
        return self._data.digest

    # How

    def _require(self, query: Query) -> None:
        if query not in (self._allowed or ()):
            raise TypeError(f"a method that asks for '{query}' must declare it: MethodInfo(queries=('{query}', ...))")

    def _drawn(self, stratum: int, count: int, key: Key) -> Rows:
        rows = self._strata[stratum]
        return np.asarray(rows[torch.randperm(len(rows), generator=key.generator())[:count].numpy()])

    def _images(self, rows: Tensor) -> Tensor:
        return self.normalisation.normalise(self._bank[rows])

    def _targets(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self._data.targets[rows]).to(self.device)

    def _batch(self, rows: Rows) -> Batch:
        return Batch(self._images(torch.from_numpy(np.asarray(rows))), self._targets(rows))

    def _at_once(self, images: int) -> int:
        return images if self._micro_batch_size is None else min(images, self._micro_batch_size)

    def _answer(self, value: Value, rows: Rows) -> Answer[Value]:
        return Answer(value, rows, self._patients)
