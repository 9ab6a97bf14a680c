"""The only source of randomness: a key that names what the numbers are for.

A key is a seed and a path of names. Two different paths give independent streams, the
same path gives the same stream on every machine, and nothing reads or writes a global
random state. So a step can be computed alone, in any order, and again after a stop.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Key:
    """A seed and the path of names below it.

    Args:
        seed: any integer.
        path: names from the root to here; use :meth:`child` to extend it.
    """

    seed: int
    path: tuple[str, ...] = ()

    def child(self, *names: str | int) -> Key:
        """The key below this one that is named so; ``child("step", 12)`` for instance."""
        return Key(self.seed, self.path + tuple(str(name) for name in names))

    def integer(self) -> int:
        """An integer in [0, 2**63), drawn from the seed and the path by SHA-256."""
        # A length before each name keeps ("a", "bc") and ("ab", "c") apart.
        text = "".join(f"{len(part)}:{part}" for part in (str(self.seed), *self.path))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """A fresh CPU generator for torch; drawing on the CPU keeps every device alike."""
        import torch

        return torch.Generator().manual_seed(self.integer())

    def numpy(self) -> np.random.Generator:
        """A fresh generator for NumPy."""
        import numpy as np

        return np.random.default_rng(self.integer())
