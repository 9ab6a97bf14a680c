"""One thing that a check of data finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medistill.aliases import Json

Level = Literal["blocking", "warning"]

NAMED = 20
"""Rows that an issue names, at most."""

Rows = tuple[tuple[str, int], ...]
"""Images by split and row."""


@dataclass(frozen=True)
class Issue:
    """One thing found.

    Args:
        level: "blocking" stops every command that trains; "warning" is told and recorded.
        kind: short name, the same in code, JSON and docs.
        found: what was found and where.
        remedy: what to do about it.
        rows: images that it is about, some of them where they are many.
    """

    level: Level
    kind: str
    found: str
    remedy: str
    rows: Rows = ()

    def as_json(self) -> Json:
        return {
            "level": self.level, "kind": self.kind, "found": self.found, "remedy": self.remedy,
            "rows": [list(row) for row in self.rows],
        }  # fmt: skip
