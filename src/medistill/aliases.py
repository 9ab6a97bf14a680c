"""Shapes of arrays used in signatures.

Images are stored as ``uint8`` and learned as ``float32``, both (n, c, *spatial): the channels before one length for
each of two or three dimensions, from the reader on.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

RawImages: TypeAlias = npt.NDArray[Any]
"""Images as read: (n, c, *spatial), integers or floats."""

Pixels: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
"""Images as prepared: (n, c, *spatial), ``uint8``, or ``uint16`` where 16 bits were asked for."""

Targets: TypeAlias = npt.NDArray[np.uint8]
"""What holds of each image: (n, outputs) zeros and ones; one-hot where classes exclude each other."""

SoftLabels: TypeAlias = npt.NDArray[np.float32]
"""Probabilities to train on, (n, outputs)."""

Probabilities: TypeAlias = npt.NDArray[np.float64]
"""Predicted probabilities (n, outputs)."""

Json: TypeAlias = dict[str, Any]
"""What ``json`` writes and reads as an object."""
