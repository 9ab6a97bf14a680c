"""``train``: what somebody who received a package does with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from medistill.aliases import Json, Probabilities
from medistill.config import EvaluateConfig
from medistill.data.checks import require_usable
from medistill.data.preprocess import TensorSplit
from medistill.distil.checkpoint import RunFolder
from medistill.errors import DataError
from medistill.evaluation.duration import Pace
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights
from medistill.files import require_apart, require_ours, require_writable, safetensors_bytes, write_atomically
from medistill.keys import Key
from medistill.nets.convnet import Parameters
from medistill.nets.training import predict_probabilities, steps_for, train_network
from medistill.nets.zoo import make_network
from medistill.package.package import read_package
from medistill.package.source import is_source, load_for
from medistill.parallel import Workers, one_thread
from medistill.progress import Progress, duration, say
from medistill.runtime import device, prepare_torch, usable_cores

RELEVANT = ("class missing", "few test images", "constant image", "patients across splits")
"""Warnings that matter to somebody who only tests; no split is missing to them."""


def train(
    package: str | Path,
    *,
    on: str | Path,
    config: EvaluateConfig | None = None,
    save: str | Path | None = None,
    classes: Mapping[str, str | None] | None = None,
    progress: bool = False,
) -> Json:
    """Train networks on a package alone and test them on the recipient's labelled images.

    Nothing is learned from the data: of a source with a test split that split is used, else
    all its images, unless they are those the package was made from.

    Args:
        package: folder or zip.
        on: data set to test on.
        config: recipe, number of networks, seed.
        classes: what the data's classes are called in the package, by the data's names; None leaves one out.
        save: write the first network's parameters there, as safetensors.
        progress: show progress on standard error.

    Returns:
        ``metrics.<metric>.{mean,std,ci95}``, ``recall`` and ``by_class``, ``confusion``, ``calibration_error``,
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
    task, preprocessing = read.task, read.preprocessing
    dataset, notes = load_for(read, on, complete_splits=False, classes=classes)
    for issue in require_usable(dataset, absent_classes=True):
        if issue.kind in RELEVANT:
            say(f"warning: {issue.kind}: {issue.found}", progress)
    asked = [dataset.splits["test"]] if "test" in dataset.splits else list(dataset.splits.values())
    if "test" not in dataset.splits:
        if is_source(read, dataset):
            raise DataError(
                "has no test images, and the package was made from the others",
                where=dataset.description.name,
                remedy="name other labelled images, or add a test split",
            )
        notes.append("the data have no test split; all their images were used for testing, none for training")
    test = TensorSplit(
        np.concatenate([preprocessing.apply(split.images) for split in asked]),
        np.concatenate([split.targets for split in asked]),
    )
    patients = [split.patients for split in asked if split.patients is not None]
    normalisation, data = preprocessing.normalisation, read.data
    recipe = config.recipe
    name, stem = config.architectures[0], recipe.stem or 0
    network = make_network(name, data.channels, data.shape, task.outputs, recipe.width, stem)
    saved, runs = None, []
    steps = steps_for(recipe, len(data))
    workers = Workers(usable_cores() if device().type == "cpu" else 1)
    if progress:
        pace, sizes = Pace(data, task, normalisation, recipe, name), [len(data)] * config.repeats
        seconds = pace.seconds(sizes, len(test), workers.number)
        say(f"training takes about {duration(seconds)}")
    with Progress("training", steps * config.repeats, enabled=progress) as shown, one_thread():
        told = Lock()

        def advance(*_: object) -> None:
            with told:
                shown.advance()

        def trained(index: int) -> tuple[Parameters, Probabilities]:
            key = Key(config.seed).child("network", index)
            parameters = train_network(network, data, task, normalisation, recipe, key, advance, device())
            return parameters, predict_probabilities(network, parameters, test.pixels, task, normalisation)

        for index, (parameters, said) in enumerate(workers.map(trained, range(config.repeats))):
            runs.append(said)
            if target is not None and index == 0:
                header = {"package_id": read.identity, "network": repr(network)}
                write_atomically(target, safetensors_bytes(parameters, header), "--save")
                saved = str(target)
    key = Key(config.seed).child("bootstrap")
    clusters = np.concatenate(patients) if len(patients) == len(asked) else None
    weights = bootstrap_weights(len(test), config.bootstrap, key, clusters)
    measured = Bootstrap.of(task, runs, test.targets, weights, key.child("distilled"))
    return {
        "package_id": read.identity,
        "data": dataset.description.name,
        "task": task.kind,
        "class_names": list(read.class_names),
        "test_images": len(test),
        "repeats": config.repeats,
        "metrics": {name: summary.as_json() for name, summary in measured.summaries().items()},
        **task.details(runs, test.targets),
        "saved": saved,
        "notes": notes,
    }
