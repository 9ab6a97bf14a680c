"""What several commands of the command line share: their arguments and options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str,
    typer.Argument(
        help="An .npz, a folder of class folders, a table of labels beside images, a MedMNIST name, or phantom."
    ),
]
PackagePath = Annotated[Path, typer.Argument(help="A package: a folder, or its .zip.")]
On = Annotated[str, typer.Option("--on", help="The data set to measure on.")]
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


def print_result(result: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Write a command's result to standard output: as one JSON object, or as text for people."""
    sys.stdout.write((json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else text(result)) + "\n")
