"""What was published under old names is read on: packages of format version 1, made from phantoms at commit b9e6853."""

import shutil

import pytest

import medistill
from conftest import ROOT, TINY
from medistill.package.package import read_package
from medistill.package.upgrade import upgraded_method

PACKAGE, CORESET = ROOT / "tests" / "data" / "package-v1.zip", ROOT / "tests" / "data" / "coreset-v1.zip"
PHANTOM = "phantom:classes=3,images=36,size=16"


def test_a_package_of_version_1_is_read_under_the_names_of_now():
    package = read_package(PACKAGE)
    manifest = package.manifest
    assert manifest.task.kind == "multi-class" and package.class_names == ("no lesion", "solid nodule", "ring lesion")
    assert manifest.image.shape == [16, 16] and manifest.image.stored_shape == [8, 8]
    assert package.synthetic_per_stratum == [8, 8, 8] and package.soft_labels is not None
    assert manifest.start == "real" and manifest.privacy.starts_from_real_images
    assert not manifest.privacy.contains_real_images and manifest.audits == []
    assert manifest.method.kind == "distillation" and manifest.method.settings["iterations"] == 4
    told = {"name": "sgd", "learning_rate": None, "momentum": 0.5, "schedule": "constant"}
    assert manifest.method.optimiser == told
    assert manifest.label_config.teachers == 1 and manifest.label_config.recipe.min_steps == 6
    assert manifest.provenance.medistill == "0.1.0"


def test_automatic_and_none_are_told_apart():
    _, optimiser = upgraded_method({"learning_rate": 0.0, "momentum": 0.0, "iterations": 5})
    assert optimiser["learning_rate"] is None and optimiser["momentum"] == 0.0


def test_its_evaluation_is_read_too():
    evaluation = read_package(PACKAGE).manifest.evaluation
    assert set(evaluation.arms) == {"distilled", "random", "random_matched", "full", "full_balanced"}
    assert evaluation.gain_over_random_matched["auroc"].ci95 is not None
    assert evaluation.primary == "balanced_accuracy" and evaluation.recipe["max_steps"] == 8
    assert evaluation.repeats == 2 and evaluation.architecture == "convnet"


def test_a_coreset_of_version_1_is_one_of_real_images():
    manifest = read_package(CORESET).manifest
    assert manifest.task.kind == "binary" and manifest.privacy.contains_real_images
    assert manifest.method.kind == "coreset" and manifest.method.optimiser is None
    assert "iterations" not in manifest.method.settings


def test_it_is_verified_trained_on_and_evaluated(tmp_path):
    assert medistill.verify(PACKAGE)["valid"]
    trained = medistill.train(PACKAGE, on=PHANTOM, config=TINY)
    assert trained["task"] == "multi-class" and trained["test_images"] == 18
    result = medistill.evaluate(PACKAGE, on=PHANTOM, config=TINY)
    assert result["data"]["same_as_distilled"] and "random_matched" in result["arms"]


def test_attaching_an_evaluation_makes_it_one_of_version_2(tmp_path):
    shutil.copy(PACKAGE, tmp_path / "p.zip")
    before = read_package(tmp_path / "p.zip")
    medistill.evaluate(tmp_path / "p.zip", on=PHANTOM, config=TINY, attach=True)
    after = read_package(tmp_path / "p.zip")
    assert after.manifest.provenance.medistill == "0.1.0", "who made it, not who wrote it again"
    assert after.manifest.format_version == 2 and after.identity != before.identity
    assert (after.pixels == before.pixels).all() and (after.soft_labels == before.soft_labels).all()


def test_an_altered_one_is_refused_like_one_of_now(tmp_path):
    content = bytearray(PACKAGE.read_bytes())
    place = content.index(b'"contains_real_images": false')
    content[place : place + 29] = b'"contains_real_images": true '
    (tmp_path / "p.zip").write_bytes(bytes(content))
    with pytest.raises(medistill.MedistillError, match="altered|damaged"):
        read_package(tmp_path / "p.zip")
