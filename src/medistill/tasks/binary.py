"""One class of two for each image."""

from __future__ import annotations

from typing import ClassVar

from medistill.errors import ConfigError
from medistill.tasks.multiclass import MultiClass
from medistill.tasks.task import register_task


@register_task
class Binary(MultiClass):
    """Two classes that exclude each other: as :class:`MultiClass`, both classes counting alike."""

    kind: ClassVar[str] = "binary"
    title: ClassVar[str] = "binary task"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.class_names) != 2:
            raise ConfigError(f"{len(self.class_names)} classes", where="--task binary", allowed="2")
