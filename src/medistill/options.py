"""What several commands of the command line share: their arguments and options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from medistill.errors import ConfigError, nearest

Data = Annotated[
    str,
    typer.Argument(
        help="An .npz, a folder of class folders, a table of labels beside images, a MedMNIST name, or phantom."
    ),
]
PackagePath = Annotated[Path, typer.Argument(help="A package: a folder, or its .zip.")]
On = Annotated[str, typer.Option("--on", help="The data set to measure on.")]
Attach = Annotated[bool, typer.Option("--attach", help="Write the results into the package's manifest and card.")]
Renamed = Annotated[
    list[str] | None,
    typer.Option(
        "--rename-class",
        metavar="THEIRS=PACKAGE'S",
        help="What a class of the data is called in the package, as 'COVID-19=covid'; 'other=' leaves it out.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random; 0 if not given.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, for instance method.iterations=500.")]
SetData = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of how data are read, as data.split_seed=1.")
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]


def _use_device(name: str | None) -> str | None:
    if name is not None:
        import_module("medistill.runtime").use_device(name)
    return name


def _use_threads(number: int | None) -> int | None:
    if number is not None:
        import_module("medistill.runtime").use_threads(number)
    return number


Device = Annotated[
    str | None,
    typer.Option(callback=_use_device, help="Where to compute: cpu, cuda, cuda:1; auto takes a GPU if there is one."),
]
Threads = Annotated[
    int | None,
    typer.Option(callback=_use_threads, help="Threads and workers to use; else all cores that are granted."),
]
Ipc = Annotated[int | None, typer.Option(help="Images per class, grade or finding.")]
Task = Annotated[
    str | None, typer.Option(help="What labels mean: binary, multi-class, ordinal (grades), multi-label (findings).")
]
TestSite = Annotated[str | None, typer.Option(help="Hold out this site or scanner: its images are the test images.")]
Epsilon = Annotated[
    float | None,
    typer.Option(
        help="Guarantee differential privacy with this ε; 1 is strong, 8 weak, without it none is guaranteed."
    ),
]
Delta = Annotated[float | None, typer.Option(help="δ of the guarantee; 1e-5 if not given.")]
Unit = Annotated[
    str | None, typer.Option(help="What --epsilon hides: image, or patient, all of whose images count as one.")
]
Ratio = Annotated[float | None, typer.Option(help="Distilled images per training image, 0.01 for instance.")]
Size = Annotated[int | None, typer.Option(help="Bring all images to this many pixels a side.")]
Channels = Annotated[int | None, typer.Option(help="1: make all images gray, 3: RGB.")]
Flips = Annotated[str | None, typer.Option(help="Mirror images that keep their class: none, horizontal, both.")]
Architectures = Annotated[
    str | None,
    typer.Option(help="Kinds of networks, as convnet,resnet18,vit; the first decides, others show transfer."),
]
Repeats = Annotated[int | None, typer.Option(help="Networks trained for each arm.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over, replacing what is there.")]

RENAMED = {"--fresh": "--overwrite", "--networks": "--repeats", "--nets": "--architectures"}
"""Options by the names that they had until version 0.1.0."""


def privacy_config(epsilon: float | None, delta: float | None, unit: str | None) -> Any:
    """The guarantee that is asked for; None without an ε."""
    from medistill.config import PrivacyConfig, build

    given = {"epsilon": epsilon, "delta": delta, "unit": unit}
    asked = {name: value for name, value in given.items() if value is not None}
    return build(PrivacyConfig, asked, "privacy") if asked else None


def renames(given: list[str] | None) -> dict[str, str | None]:
    """What was given by ``--rename-class``, by the data's name; None where a class is to be left out.

    >>> renames(["COVID-19=covid", "other="])
    {'COVID-19': 'covid', 'other': None}
    """
    found: dict[str, str | None] = {}
    for text in given or []:
        theirs, equals, own = text.rpartition("=")
        if not equals or not theirs.strip() or theirs.strip() in found:
            raise ConfigError(
                f"'{text}'", where="--rename-class", allowed="each of the data's classes once, as 'COVID-19=covid'"
            )
        found[theirs.strip()] = own.strip() or None
    return found


def print_result(result: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Write a command's result to standard output: as one JSON object, or as text for people."""
    sys.stdout.write((json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else text(result)) + "\n")


def require_known(settings: dict[str, Any], allowed: list[str]) -> None:
    """Refuse settings of other names.

    Raises:
        ConfigError: one is none of these.
    """
    for name in settings:
        if name not in allowed:
            raise ConfigError(f"unknown setting '{name}'", remedy=nearest(name, allowed))


def evaluate_config(
    settings: dict[str, Any], repeats: int | None, seed: int | None, architectures: str | None = None
) -> Any:
    """How to evaluate, of a file's settings and what options say beside them."""
    from medistill.config import DistilConfig, EvaluateConfig, build, mapping

    if "evaluate" in settings:  # a file shared with `distill`, whose own settings do not matter here
        require_known(settings, ["evaluate", *EvaluateConfig.model_fields, *DistilConfig.model_fields])
        top_level = {k: v for k, v in settings.items() if k in EvaluateConfig.model_fields and k != "seed"}
        settings = {**mapping(settings["evaluate"], "evaluate"), **top_level}
    given = {"repeats": repeats, "seed": seed, "architectures": architectures}
    return build(EvaluateConfig, {**settings, **{k: v for k, v in given.items() if v is not None}})
