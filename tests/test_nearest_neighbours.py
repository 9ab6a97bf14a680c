"""Nearest neighbours and exact inclusion: copies are found, however they were changed; what shows nobody passes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.losses import SSIMLoss

import medistill
from medistill.audits.audit import NotMeasuredError, Population, audits, populations
from medistill.audits.closest import closest_in_structure
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.keys import Key
from medistill.package.package import read_package

PHANTOM = "phantom:classes=3,images=240,size=24"


@pytest.fixture(scope="module")
def prepared():
    return prepare(load(PHANTOM))


@pytest.fixture(scope="module")
def coreset(tmp_path_factory):
    out = tmp_path_factory.mktemp("coreset") / "p"
    medistill.distill(PHANTOM, out=out, method="random", ipc=30)
    return read_package(out)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "p"
    settings = {"method": {"name": "dm", "iterations": 60, "networks": 6, "filters": 16, "real_batch": 40}}
    medistill.distill(PHANTOM, out=out, ipc=30, settings=settings)
    return read_package(out)


def finding(name, package, prepared):
    return audits()[name]().run(package, *populations(prepared), Key(0))


def test_a_coreset_includes_training_images(coreset, prepared):
    found = finding("exact_inclusion", coreset, prepared)
    assert (found.verdict, found.value, found.real_images) == ("fail", 90.0, 90)


def test_images_that_were_learned_are_no_training_images(distilled, prepared):
    found = finding("exact_inclusion", distilled, prepared)
    assert (found.verdict, found.value) == ("pass", 0.0)


def test_one_image_among_many_is_found(distilled, prepared):
    pixels = distilled.pixels.copy()
    pixels[7] = prepared.train.pixels[3]
    assert finding("exact_inclusion", replace(distilled, pixels=pixels), prepared).value == 1.0


def test_images_that_were_learned_are_as_near_to_others(distilled, prepared):
    found = finding("nearest_neighbours", distilled, prepared)
    assert found.verdict == "pass"
    assert 0.25 < found.value < 0.7


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: np.roll(x, 1, axis=3),
        lambda x: (40 + 0.6 * x.astype(float)).astype(np.uint8),
        lambda x: np.clip(x + np.random.default_rng(0).normal(0, 6, x.shape), 0, 255).astype(np.uint8),
    ],
    ids=["as it is", "shifted", "paler", "noisy"],
)
def test_changed_copies_are_nearer_to_training_images(coreset, prepared, change):
    found = finding("nearest_neighbours", replace(coreset, pixels=change(coreset.pixels)), prepared)
    # Of 240 training images a third is drawn to compare with, so most copies have no original there.
    assert found.value > 0.55
    assert found.verdict != "pass"


def test_structural_similarity_is_that_of_the_library(prepared):
    images = prepared.train.pixels[:3]
    real = prepared.train.pixels[5:9]
    loss = SSIMLoss(2, data_range=255.0, kernel_type="uniform", win_size=7, reduction="none")
    found = closest_in_structure(images, real)
    for number, (value, row) in enumerate(zip(found.similarity, found.row, strict=True)):
        own = torch.from_numpy(images[number].copy()).float()[None].expand(len(real), -1, -1, -1)
        wanted = 1 - loss(own, torch.from_numpy(real.copy()).float())
        assert value == pytest.approx(float(wanted.max()), abs=1e-5) and row == int(wanted.flatten().argmax())


def test_nothing_to_compare_with_is_told(coreset, prepared):
    members, _ = populations(prepared)
    nobody = Population([], np.zeros((0, prepared.task.outputs), dtype=np.uint8))
    with pytest.raises(NotMeasuredError, match="took no part"):
        audits()["nearest_neighbours"]().run(coreset, members, nobody, Key(0))
