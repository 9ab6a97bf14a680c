"""``phantom`` or ``phantom:classes=3,site=b``: images that belong to nobody."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from medistill.config import DataConfig
from medistill.data.dataset import Dataset
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import parse_phantom
from medistill.data.reader import Reader, register_reader

PHANTOM = "phantom"


@register_reader
class PhantomReader(Reader):
    """Generates images by what stands behind the colon."""

    name: ClassVar[str] = "phantom"
    accepts: ClassVar[str] = "phantom"
    order: ClassVar[int] = 40

    def matches(self, source: str, path: Path) -> bool:
        return source.split(":")[0] == PHANTOM

    def read(self, source: str, path: Path, config: DataConfig) -> Dataset:
        return make_phantom(parse_phantom(source))
