"""``train``: what somebody who received a package does with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medistill.config import EvaluateConfig
from medistill.data.checks import require_usable
from medistill.data.preprocess import Part
from medistill.distil.checkpoint import RunFolder
from medistill.errors import DataError
from medistill.evaluation.align import is_source, load_for
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights
from medistill.evaluation.metrics import METRICS, details
from medistill.files import require_apart, require_ours, require_writable, write_atomically
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import Statistics, predict, steps_for
from medistill.nets.training import train as fit
from medistill.package.package import read_package
from medistill.progress import Progress, say
from medistill.runtime import device, prepare_torch
from medistill.types import Json

TOLD = ("class missing", "few test images", "constant image", "patients across splits")
"""Warnings that matter to somebody who only tests; no split is missing to them."""


def train(
    package: str | Path,
    *,
    on: str | Path,
    config: EvaluateConfig | None = None,
    save: str | Path | None = None,
    progress: bool = False,
) -> Json:
    """Train networks on a package alone and test them on the recipient's labelled images.

    Nothing is learned from the data: of a source with a test split that split is used, else
    all its images, unless they are those the package was made from.

    Args:
        package: folder or zip.
        on: data set to test on.
        config: recipe, number of networks, seed.
        save: write the first network's parameters there, as safetensors.
        progress: show progress on standard error.

    Returns:
        ``metrics.<metric>.{mean,std,ci95}``, ``recall`` per class, ``confusion``, ``calibration_error``,
        ``test_images``, ``notes`` and ``saved``.

    Raises:
        PackageError, DataError, ConfigError, OutputError: one line each.
    """
    prepare_torch()
    target = None if save is None else Path(save).expanduser()
    if target is not None:
        require_apart(target, "--save", RunFolder(Path(package)).out, on)
        require_ours(target, "--save", b'"package_id"')
        require_writable(target, "--save")
    config = config or EvaluateConfig()
    read = read_package(package)
    statistics = read.preprocessing
    dataset, notes = load_for(read, on, complete_splits=False)
    for problem in require_usable(dataset, absent_classes=True):
        if problem.kind in TOLD:
            say(f"warning: {problem.kind}: {problem.found}", progress)
    asked = [dataset.splits["test"]] if "test" in dataset.splits else list(dataset.splits.values())
    if "test" not in dataset.splits:
        if is_source(read, dataset):
            raise DataError(
                "has no test images, and the package was made from the others",
                where=dataset.description.name,
                remedy="name other labelled images, or add a test split",
            )
        notes.append("the data have no test split; all their images were used for testing, none for training")
    test = Part(
        np.concatenate([statistics.apply(split.images) for split in asked]),
        np.concatenate([split.labels for split in asked]),
    )
    patients = [split.patients for split in asked if split.patients is not None]
    normal = Statistics(statistics.mean, statistics.std, read.manifest["flips"])
    part = read.part
    channels, height, width = part.pixels.shape[1:]
    network = ConvNet(channels, height, width, len(read.class_names), config.recipe.width)
    saved, runs = None, []
    steps = steps_for(config.recipe, len(read.labels))
    with Progress("training", steps * config.networks, enabled=progress) as shown:
        for index in range(config.networks):
            key = Key(config.seed).child("network", index)
            parameters = fit(network, part, normal, config.recipe, key, lambda *_: shown.advance(), device())
            runs.append(predict(network, parameters, test.pixels, normal))
            if target is not None and index == 0:
                from safetensors.torch import save as serialise

                header = {"package_id": read.identity, "network": repr(network)}
                write_atomically(target, serialise(parameters, header), "--save")
                saved = str(target)
    key = Key(config.seed).child("bootstrap")
    known = np.concatenate(patients) if len(patients) == len(asked) else None
    measured = Bootstrap.of(
        runs, test.labels, bootstrap_weights(len(test), config.bootstrap, key, known), key.child("distilled")
    )
    return {
        "package_id": read.identity,
        "data": dataset.description.name,
        "class_names": list(read.class_names),
        "test_images": len(test),
        "networks": config.networks,
        "metrics": {m: measured.summary(m) for m in METRICS},
        **details(runs, test.labels),
        "saved": saved,
        "notes": notes,
    }
