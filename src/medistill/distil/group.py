"""Several processes on one distillation: each takes some strata, all take the same step.

Started by ``torchrun``, every process runs the same command on the same data. A step's loss is
a sum over strata, so each process computes the gradient of its own share of them, the
gradients are added, and every process updates the same images in the same way. The first
process alone reads and writes the run's folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, distributed

from medistill.distil.method import Method, State
from medistill.errors import ConfigError


@dataclass
class Group:
    """The processes that share a distillation; alone unless :func:`join` found others.

    Args:
        rank: this process's number, from 0.
        size: number of processes.
        begun: whether the exchange between them was begun here, and so is ended here.
        awaited: whether the others still wait for the state that the first process has.
    """

    rank: int = 0
    size: int = 1
    begun: bool = False
    awaited: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process reads and writes the run's folder."""
        return self.rank == 0

    def require_divisible(self, method: Method) -> None:
        """Refuse to share what cannot be divided.

        Raises:
            ConfigError: the method's loss is of all classes together.
        """
        if self.size > 1 and method.info.couples_classes:
            raise ConfigError(
                f"{self.size} processes for {method.info.name}, whose loss is of all classes together",
                where="torchrun",
                allowed="one process, or a method that matches class by class (dm, ncfm, dc, dsa)",
            )

    def assigned(self, strata: int) -> range:
        """The strata of this process: every ``size``-th, so that neighbours of like size are spread."""
        return range(self.rank, strata, self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits in each."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def broadcast(self, state: State | None) -> State | None:
        """What the first process handed in; whatever the others did is ignored."""
        self.awaited = False
        if self.size == 1:
            return state
        box = [state if self.is_main else None]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def leave(self) -> None:
        """End the exchange with the others; each goes its own way, those that still wait with nothing to do."""
        if self.is_main and self.awaited:
            with suppress(RuntimeError):  # they are gone; why this process leaves is what is told
                self.broadcast(None)
        if self.begun:
            self.begun = False
            distributed.destroy_process_group()


def join() -> Group:
    """The group that ``torchrun`` started this process in, or a group of one."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return Group()
    begun = not distributed.is_initialized()
    if begun:
        distributed.init_process_group("gloo")
    return Group(distributed.get_rank(), distributed.get_world_size(), begun)
