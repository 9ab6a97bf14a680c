"""What a phantom is: its settings, from text too, and what its labels mean."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Literal

from medistill.errors import ConfigError, nearest
from medistill.tasks.task import Task, exclusive_kind, make_task

LESIONS = (
    "no lesion",
    "solid nodule",
    "ring lesion",
    "spiculated mass",
    "calcifications",
    "cyst",
    "band opacity",
    "paired nodules",
)
SITES = {
    # blur (in 1/28 of the side), noise, gamma, shading, stain (rows: background, tissue, lesion)
    "a": (0.35, 0.045, 1.0, 0.10, ((0.95, 0.90, 0.94), (0.80, 0.50, 0.70), (0.38, 0.20, 0.55))),
    "b": (0.75, 0.030, 0.75, 0.30, ((0.90, 0.91, 0.86), (0.86, 0.58, 0.60), (0.45, 0.18, 0.38))),
    "c": (0.20, 0.080, 1.35, 0.05, ((0.97, 0.95, 0.97), (0.72, 0.52, 0.78), (0.30, 0.25, 0.62))),
}


TASKS = ("classes", "grades", "findings")

PREVALENCE = 0.3
"""Share of images that have a finding, before the least is made sure of."""


@dataclass(frozen=True)
class Phantom:
    """What to generate.

    Args:
        classes: kinds of lesion, 2 to 8; of grades how many there are, of findings at most 7.
        images: training images, at least 2 per class; a quarter as many again are made
            for validation and a half as many for testing.
        size: height and width in pixels, at least 16.
        width: width where it differs from ``size``; 0 for square.
        depth: of volumes, at least 16; 0 for pictures.
        task: "classes"; "grades", of which a higher one is a stronger lesion; or "findings", of which an image has
            several or none.
        colour: RGB with the site's stain instead of gray.
        site: scanner, "a", "b" or "c"; all share classes and anatomy.
        imbalance: images of the most frequent class for one of the rarest, at least 1.
        difficulty: 0.1 to 3; higher means fainter lesions in more texture.
        seed: any integer.
    """

    classes: int = 4
    images: int = 800
    size: int = 28
    width: int = 0
    depth: int = 0
    task: Literal["classes", "grades", "findings"] = "classes"
    colour: bool = False
    site: Literal["a", "b", "c"] = "a"
    imbalance: float = 1.0
    difficulty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "classes": (2, len(LESIONS)),
            "images": (2 * self.classes, 10**7),
            "size": (16, 4096),
            "imbalance": (1, 1000),
            "difficulty": (0.1, 3),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{getattr(self, name)}", where=f"phantom:{name}", allowed=f"{low} to {high}")
        if self.width and not 16 <= self.width <= 4096:
            raise ConfigError(f"{self.width}", where="phantom:width", allowed="0, or 16 to 4096")
        if self.depth and (not 16 <= self.depth <= 512 or self.colour):
            raise ConfigError(f"{self.depth}", where="phantom:depth", allowed="0, or 16 to 512 without colour")
        if self.task not in TASKS:
            raise ConfigError(f"'{self.task}'", where="phantom:task", allowed=", ".join(TASKS))
        if self.task == "findings" and self.classes >= len(LESIONS):
            raise ConfigError(f"{self.classes} findings", where="phantom:classes", allowed=f"2 to {len(LESIONS) - 1}")
        if self.site not in SITES:
            raise ConfigError(f"'{self.site}'", where="phantom:site", allowed=", ".join(SITES))


def parse_phantom(text: str) -> Phantom:
    """Read "phantom" or "phantom:classes=3,site=b,colour=true".

    Raises:
        ConfigError: unknown setting or a value outside its range.
    """
    options: dict[str, int | float | bool | str] = {}
    kinds: dict[str, type] = {f.name: type(f.default) for f in fields(Phantom)}
    for part in filter(None, text.partition(":")[2].split(",")):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\S+)\s*", part)
        if not match or match[1] not in kinds:
            name = match[1] if match else part
            raise ConfigError(f"unknown setting '{name}'", where="phantom", remedy=nearest(name, kinds))
        name, value = match.groups()
        try:
            if kinds[name] is bool:
                options[name] = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            else:
                options[name] = kinds[name](value)
        except (ValueError, KeyError) as problem:
            raise ConfigError(
                f"'{value}'", where=f"phantom:{name}", allowed=f"a value of type {kinds[name].__name__}"
            ) from problem
    return replace(Phantom(), **options)  # type: ignore[arg-type]


Lesions = list[tuple[str, float]]
"""Kinds of lesion with the share of their contrast."""


def phantom_task(spec: Phantom) -> Task:
    """What the labels of a phantom mean."""
    if spec.task == "grades":
        return make_task("ordinal", [f"grade {grade}" for grade in range(spec.classes)])
    if spec.task == "findings":
        return make_task("multi-label", LESIONS[1 : spec.classes + 1])
    return make_task(exclusive_kind(spec.classes), LESIONS[: spec.classes])
