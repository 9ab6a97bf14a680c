"""Shared fixtures: a cache of our own, small phantoms, the shared real data where they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from medistill.config import EvaluateConfig, Recipe
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import prepare
from medistill.distil.problem import make_problem

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("MEDISTILL_DATA", ROOT.parent / "shared" / "data"))

TINY = EvaluateConfig(
    recipe=Recipe(min_steps=6, max_steps=8, width=8, batch_size=16), repeats=2, random_draws=2, bootstrap=100
)
"""An evaluation of seconds; its figures mean nothing."""

TINY_SETS = [
    "recipe.min_steps=6", "recipe.max_steps=8", "recipe.width=8", "recipe.batch_size=16",
    "repeats=2", "random_draws=2", "bootstrap=100",
]  # fmt: skip

SMALL_DM = {"method": {"name": "dm", "iterations": 4, "networks": 2, "filters": 8, "real_batch": 8}}
QUICK = [
    "--set",
    "method.name=dm",
    "--set",
    "method.iterations=4",
    "--set",
    "method.networks=2",
    "--set",
    "method.filters=8",
]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["MEDISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny():
    """Three classes, 16 pixels, a few dozen images."""
    return make_phantom(Phantom(classes=3, images=36, size=16))


@pytest.fixture(scope="session")
def tiny_npz(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "tiny.npz"
    np.savez(path, **npz_arrays(tiny))
    return path


@pytest.fixture(scope="session")
def tiny_problem(tiny):
    return make_problem(prepare(tiny), 2, None)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A finished package of the tiny phantom."""
    import medistill

    out = tmp_path_factory.mktemp("package") / "p"
    medistill.distill("phantom:classes=3,images=36,size=16", out=out, ipc=2, settings=SMALL_DM)
    return out


@pytest.fixture
def cli(capfd, monkeypatch):
    """Run the command line in this process: (status, standard output, standard error)."""
    from medistill.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medistill", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def real():
    """Path of a shared real data set by file name."""

    def find(name: str) -> Path:
        if not (REAL / name).exists():
            pytest.skip(f"{name} is not in {REAL} (set MEDISTILL_DATA)")
        return REAL / name

    return find


def npz_arrays(dataset) -> dict[str, np.ndarray]:
    arrays = {}
    for name, split in dataset.splits.items():
        images = split.images
        last = np.moveaxis(images, 1, -1)
        arrays[f"{name}_images"] = last[..., 0] if last.shape[-1] == 1 else last
        labels = dataset.task.labels(split.targets).astype(np.uint8)
        arrays[f"{name}_labels"] = labels[:, None] if labels.ndim == 1 else labels
    return arrays


@pytest.fixture
def short(monkeypatch):
    """Networks of features are trained for a few steps."""
    from studies import train_features_shortly

    train_features_shortly(monkeypatch)


def as_class_folders(root, split, names):
    """Write gray pictures (n, 1, h, w) and their classes as a folder of class folders."""
    from PIL import Image

    for row, (image, label) in enumerate(zip(split.images[:, 0], split.targets.argmax(1), strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[label] / f"{row}.png")


def class_folders(root, splits=("train", "test"), mode="L", suffix="png", size=(16, 18)):
    """Two classes of six noisy pictures in each split; "" for none."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in splits:
        for label in ("cat", "dog"):
            place = root / split / label if split else root / label
            place.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(place / f"{i}.{suffix}")
