"""From what a user asks for to the method and the whole configuration of a distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medistill.config import DistilConfig, build, mapping
from medistill.data.image import Shape, is_picture
from medistill.distil.method import Method, make_method
from medistill.distil.optimiser import Optimiser
from medistill.distil.presets import default_settings, merged, read_preset
from medistill.distil.problem import DistillationProblem
from medistill.errors import ConfigError

DEFAULT_METHOD = "dm"

LARGE = 96
"""Pixels of the shorter side from which pictures are stored at a quarter of it."""


def configured(
    method: str | None,
    ipc: int | None,
    ratio: float | None,
    preset: str | None,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    for_this_machine: bool = True,
    shape: Shape | None = None,
) -> tuple[Method, DistilConfig]:
    """The method and the whole configuration that ``medistill.distill`` follows when it is given these.

    Where neither a method nor a preset is named, here or in the settings, the recommended configuration
    (``medistill/recipes/default.yaml``, or ``private.yaml`` where a guarantee of privacy is asked for) is taken.

    Args:
        method, preset: names.
        ipc, ratio: how many images; they stand for one another in the settings.
        settings: sections of settings, as of a file.
        given: single settings by dotted name, which win over a file.
        for_this_machine: decide what is left to the machine.
        shape: of the images in pixels, where it is known; a factor that is left open is that of small ones without.

    Raises:
        ConfigError: an unknown method, preset or setting, or a value out of range.
    """
    values = dict(settings)
    asked = values.get("method", {})
    named = {"name": asked} if isinstance(asked, str) else dict(mapping(asked, "method"))
    values["method"] = named
    private = bool(values.get("privacy")) or given.get("privacy.epsilon") is not None
    default = default_settings(private)
    # What is private is so by one release, for which the method by its name has other settings than by default.
    its_own = private and (method or named.get("name")) == default["method"]["name"]
    if preset is None and (its_own or (method is None and "name" not in named)):
        values = merged(default, values)
    elif method is not None or "name" not in named:
        named["name"] = method or DEFAULT_METHOD
    if preset is not None:
        values = merged(read_preset(str(values["method"]["name"]), preset), values)
    chosen = make_method(dict(values["method"]))
    if for_this_machine:
        chosen = chosen.for_this_machine()
    values["method"] = chosen.configuration()
    if ipc is not None or ratio is not None:
        values |= {"ipc": ipc, "ratio": ratio}
    for section in ("data", "labels", "optimiser", "privacy"):
        values[section] = mapping(values.get(section), section)
    for name, value in given.items():
        if value is not None:
            *sections, last = name.split(".")
            (values[sections[0]] if sections else values)[last] = value
    if values["privacy"]:
        values["data"] |= {"split": "independent", "statistics": "public"}
    else:
        values["privacy"] = None
    if values.get("factor", 1) is None:
        values["factor"] = factor_for(shape or ())
    config = build(DistilConfig, values)
    if chosen.info.kind == "coreset" and any(v is not None for v in config.optimiser.model_dump().values()):
        raise ConfigError("is given", where="optimiser", allowed=f"none: {chosen.info.name} learns nothing")
    return chosen, config


def factor_for(shape: Shape) -> int:
    """How much smaller images of a shape are stored where nobody says it: chosen on validation images, see
    docs/explanation/choosing-a-method.md, "Larger images".

    >>> factor_for((28, 28)), factor_for((128, 160)), factor_for((64, 64, 64))
    (2, 4, 2)
    """
    return 4 if is_picture(shape) and min(shape) >= LARGE else 2


def optimiser_of(method: Method, config: DistilConfig, problem: DistillationProblem) -> Optimiser:
    """What moves the images: the method's own, with what the configuration asks for instead."""
    return method.optimiser(problem).configured(config.optimiser)
