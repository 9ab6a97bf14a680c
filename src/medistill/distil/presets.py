"""Presets: a method's settings as a file, one for each method and purpose.

``paper`` is the published setting, for whoever has the hours. The files lie in
``medistill/recipes/<method>-<preset>.yaml``. The whole configuration that is taken where no
method is named is ``medistill/recipes/default.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from medistill.aliases import Json
from medistill.config import read_yaml
from medistill.distil.method import methods
from medistill.errors import ConfigError, nearest


def presets() -> dict[str, list[str]]:
    """Names of the presets that there are for each method."""
    by_method: dict[str, list[str]] = {}
    for file in sorted(Path(str(resources.files("medistill"))).glob("recipes/*-*.yaml")):
        method, _, preset = file.stem.rpartition("-")
        by_method.setdefault(method, []).append(preset)
    return by_method


def read_preset(method: str, preset: str) -> Json:
    """A preset's settings, ``{"method": ..., "optimiser": ...}``.

    Raises:
        ConfigError: no such method, or it has no such preset.
    """
    if method not in methods():
        raise ConfigError(f"unknown method '{method}'", where="--method", remedy=nearest(method, methods()))
    available = presets().get(method, [])
    if preset not in available:
        raise ConfigError(
            f"'{method}' has no preset '{preset}'",
            where="--preset",
            allowed=", ".join(available) or "none, the defaults are its only setting",
        )
    settings = read_yaml(Path(str(resources.files("medistill"))) / "recipes" / f"{method}-{preset}.yaml")
    return {"optimiser": settings.pop("optimiser", {}), "method": {"name": method, **settings}}


def default_settings(private: bool = False) -> Json:
    """The configuration where nobody names a method: method, factor and labels; private ones have a guarantee."""
    name = "private.yaml" if private else "default.yaml"
    return read_yaml(Path(str(resources.files("medistill"))) / "recipes" / name)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Json:
    """Settings of the first, overridden by those of the second, section by section.

    >>> merged({"method": {"name": "dm"}, "factor": 2}, {"method": {"iterations": 5}})
    {'method': {'name': 'dm', 'iterations': 5}, 'factor': 2}
    """
    result = dict(first)
    for name, value in second.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
