"""Shape aliases used in signatures.

Images are stored as ``uint8`` and learned as ``float32``; both are ``n c h w`` once
preprocessing has run, ``n h w c`` before it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

RawImages: TypeAlias = npt.NDArray[Any]
"""Images as read: (n, h, w, c), ``uint8`` or ``uint16``, c is 1 or 3."""

Labels: TypeAlias = npt.NDArray[np.int64]
"""Class numbers (n,), 0 to classes − 1."""

Probabilities: TypeAlias = npt.NDArray[np.float64]
"""Predicted class probabilities (n, classes), rows sum to one."""

Json: TypeAlias = dict[str, Any]
"""What ``json`` writes and reads as an object."""
