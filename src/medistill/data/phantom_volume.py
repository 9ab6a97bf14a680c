"""Volumes of phantoms: the same lesions in three dimensions, without rotation of what is around them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from medistill.data.image import Shape
from medistill.data.phantom_spec import Lesions, Phantom

Array = npt.NDArray[np.float64]

EDGE = 0.06
"""Width of an edge, where the shortest side is 2."""

BLUR = {"a": 0.35, "b": 0.75, "c": 0.20}
"""Of each scanner, in 1/28 of the shortest side."""

NOISE = {"a": 0.045, "b": 0.030, "c": 0.080}


def volume(
    spec: Phantom, shape: Shape, lesions: Lesions, texture: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """One volume, (1, *shape) ``uint8``.

    Args:
        spec: site and difficulty.
        shape: depth, height, width.
        lesions: what it shows.
        texture: seed of the patient's tissue.
        rng: everything else.
    """
    unit = min(shape)
    grid = np.meshgrid(*((np.arange(side) + 0.5) / unit * 2 - side / unit for side in shape), indexing="ij")
    shift = rng.normal(0, 0.05, 3)
    place = [axis - move for axis, move in zip(grid, shift, strict=True)]
    patient = np.random.default_rng(texture)
    body = ball(place, np.zeros(3), patient.uniform(0.8, 0.98, 3))
    tissue = np.full(shape, patient.uniform(0.35, 0.55))
    for _ in range(3):
        tissue += patient.uniform(-0.2, 0.2) * ball(
            place, patient.uniform(-0.5, 0.5, 3), patient.uniform(0.2, 0.45, 3)
        )
    grain = gaussian_filter(patient.standard_normal(shape), 1.3 * unit / 28)
    tissue += spec.difficulty * 0.04 * grain / grain.std()
    picture = body * tissue
    for kind, share in lesions:
        contrast = rng.uniform(0.5, 0.85) / spec.difficulty
        picture = picture + body * lesion(kind, place, rng) * contrast * share
    picture = gaussian_filter(np.clip(picture, 0, 1), BLUR[spec.site] * unit / 28)
    picture = picture + NOISE[spec.site] * rng.standard_normal(shape)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)[None]


def ball(place: list[Array], centre: Array, radii: Array) -> Array:
    """A soft-edged ellipsoid, one inside, zero outside."""
    distance = np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(place, centre, radii, strict=True)))
    return 1 / (1 + np.exp(np.clip((distance - 1) * float(min(radii)) / EDGE, -40, 40)))


def lesion(kind: str, place: list[Array], rng: np.random.Generator) -> Array:
    """The lesion's brightness, within about −1 to 1."""
    centre, radius = rng.uniform(-0.35, 0.35, 3), rng.uniform(0.28, 0.42)
    radii = np.full(3, radius)
    if kind == "solid nodule":
        return ball(place, centre, radii)
    if kind == "cyst":
        return -ball(place, centre, radii)
    if kind == "ring lesion":
        return ball(place, centre, radii) - 1.2 * ball(place, centre, 0.6 * radii)
    if kind == "spiculated mass":
        arms = [ball(place, centre, np.roll([1.6 * radius, 0.3 * radius, 0.3 * radius], turn)) for turn in range(3)]
        return np.minimum(1.0, sum(arms))
    if kind == "calcifications":
        spots = [ball(place, centre + rng.normal(0, 0.2, 3), np.full(3, 0.1)) for _ in range(7)]
        return np.minimum(1.4, 1.6 * sum(spots))
    if kind == "band opacity":
        return np.asarray(np.exp(-(((place[0] - centre[0]) / (0.4 * radius)) ** 2)))
    if kind == "paired nodules":
        gap = np.array([0.0, radius, radius])
        return ball(place, centre + gap, 0.6 * radii) + ball(place, centre - gap, 0.6 * radii)
    return np.zeros_like(place[0])
