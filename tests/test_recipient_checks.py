"""Checks of the package alone: what was planted is found, and what was not is not."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import medistill
from medistill.audits.audit import NotMeasuredError, Population, audits
from medistill.audits.features import left_out_answers
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.package.package import read_package

PHANTOM = "phantom:classes=3,images=120,size=16"
ALONE = ("class_outliers", "label_flips", "pixel_statistics", "triggers")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "p"
    settings = {"method": {"name": "dm", "iterations": 200, "networks": 8, "filters": 32, "real_batch": 40}}
    medistill.distill(PHANTOM, out=out, ipc=12, settings=settings)
    return out


@pytest.fixture(scope="module")
def package(path):
    return read_package(path)


def finding(name, package):
    nobody = Population([], package.targets[:0])
    return audits()[name]().run(package, nobody, nobody, Key(0))


@pytest.fixture(scope="module")
def coreset(tmp_path_factory):
    out = tmp_path_factory.mktemp("coreset") / "p"
    medistill.distill(PHANTOM, out=out, method="random", ipc=20)
    return read_package(out)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("kind", ["package", "coreset"])
def test_a_package_as_it_is_made_passes(name, kind, request):
    made = request.getfixturevalue(kind)
    # Of the phantom's kinds no linear model tells, so a change of labels is sought in stripes.
    assert finding(name, told_apart(made) if name == "label_flips" else made).verdict == "pass"


def told_apart(package):
    """The package with images that anybody can tell apart: stripes as wide as the stratum's number says."""
    generator, columns = np.random.default_rng(0), np.arange(16)
    stripes = [np.sin(columns * (stratum + 1)) * 60 + 120 for stratum in package.strata]
    noise = generator.normal(0, 25, package.pixels.shape)
    return replace(package, pixels=(np.array(stripes)[:, None, None, :] + noise).clip(0, 255).astype(np.uint8))


def test_labels_that_were_exchanged_are_found(package):
    package = told_apart(package)
    found = finding("label_flips", package)
    assert found.value == 0 and found.details["accuracy"] == 1 and found.verdict == "pass"
    targets = package.targets.copy()
    targets[[2, 20, 30]] = np.roll(targets[[2, 20, 30]], 1, axis=1)
    found = finding("label_flips", replace(package, targets=targets))
    assert found.details["images"] == [2, 20, 30] and found.verdict == "warn"


def test_of_images_that_no_model_tells_apart_nothing_is_said(package):
    noise = np.random.default_rng(0).integers(0, 256, package.pixels.shape).astype(np.uint8)
    with pytest.raises(NotMeasuredError, match="rightly"):
        finding("label_flips", replace(package, pixels=noise))


def test_an_image_that_is_none_of_its_class_is_found(package):
    pixels = package.pixels.copy()
    pixels[5] = np.random.default_rng(0).integers(0, 256, pixels[5].shape)
    found = finding("class_outliers", replace(package, pixels=pixels))
    assert found.details["images"] == [5] and found.verdict == "warn"


def test_a_patch_in_all_images_of_one_class_is_found(package):
    pixels = package.pixels.copy()
    pixels[package.strata == 1, :, :3, :3] = 255
    found = finding("triggers", replace(package, pixels=pixels))
    assert found.verdict == "warn" and [entry["stratum"] for entry in found.details["found"]] == ["solid nodule"]
    everywhere = package.pixels.copy()
    everywhere[:, :, :3, :3] = 255
    assert finding("triggers", replace(package, pixels=everywhere)).verdict == "pass", "black corners are no triggers"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pixels: np.full_like(pixels, 128), "no contrast"),
        (lambda pixels: np.where(pixels > 128, 255, 0).astype(np.uint8), "black or white"),
        (lambda pixels: np.clip(pixels.astype(int) + 120, 0, 255).astype(np.uint8), "deviations from the originals'"),
    ],
)
def test_pixels_that_do_not_fit_the_manifest_are_told(package, change, said):
    found = finding("pixel_statistics", replace(package, pixels=change(package.pixels)))
    assert found.verdict == "warn" and said in found.explanation


def test_one_image_of_a_class_says_nothing(tmp_path):
    medistill.distill(PHANTOM, out=tmp_path / "p", method="random", ipc=1)
    package = read_package(tmp_path / "p")
    for name in ("label_flips", "class_outliers", "triggers"):
        with pytest.raises(NotMeasuredError, match="image"):
            finding(name, package)


def test_leaving_out_has_a_closed_form():
    """Against fitting the model anew without each image."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(12, 5)).astype(np.float32)
    targets = np.eye(3, dtype=np.uint8)[generator.integers(0, 3, 12)]
    x = features.astype(float)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    wanted = targets - targets.mean(axis=0)
    for left in range(12):
        kept = np.arange(12) != left
        weights = np.linalg.solve(x[kept].T @ x[kept] + 5 * np.eye(5), x[kept].T @ wanted[kept])
        expected = x[left] @ weights + targets.mean(axis=0)
        np.testing.assert_allclose(left_out_answers(features, targets)[left], expected, atol=1e-8)


def test_the_command_without_training_data_says_what_it_could_not_measure(path):
    result = medistill.audit(path)
    measured = {finding["name"] for finding in result["audits"]}
    assert measured >= set(ALONE) - {"label_flips"} and {*measured, *result["not_measured"]} == set(audits())
    assert "--train" in result["not_measured"]["membership"]


def test_findings_go_into_manifest_and_card(path, tmp_path):
    medistill.distill(PHANTOM, out=tmp_path / "p", method="random", ipc=4)
    result = medistill.audit(tmp_path / "p", train=PHANTOM, checks=["pixel_statistics", "resemblance"], attach=True)
    package = read_package(tmp_path / "p")
    assert package.identity == result["package_id"]
    assert sorted(finding.name for finding in package.manifest.audits) == ["pixel_statistics", "resemblance"]
    assert "statistics of pixels" in (tmp_path / "p" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checks": ["trigger"]}, "did you mean 'triggers'"),
        ({"settings": {"triggers": {"size": 3}}}, "unknown setting 'triggers.size'"),
        ({"attach": True}, "needs the training data"),
        ({"train": "phantom:classes=3,images=60,size=16"}, "not the data that the package was made from"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(path, options, said):
    with pytest.raises(ConfigError) as refused:
        medistill.audit(path, **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_distilling_and_auditing_in_one_command(tmp_path):
    few = ["membership.iterations=2", "membership.training_steps=2", "canaries.iterations=2"]
    settings = [*(f"audit.{option}" for option in few), "method.iterations=2", "method.networks=2"]
    words = ["distill", PHANTOM, "--out", str(tmp_path / "p"), "--method", "dm", "--ipc", "2", "--audit", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "medistill.cli", *words, *(w for s in settings for w in ("--set", s))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    measured = [finding["name"] for finding in result["audits"]]
    assert set(measured) >= {"membership", "canaries", "resemblance", "pixel_statistics"}
    assert {*measured, *result["not_measured"]} == set(audits()) and "soft_labels" in result["not_measured"]
    package = read_package(tmp_path / "p")
    assert package.identity == result["package_id"] and len(package.manifest.audits) == len(measured)
    assert "auditing takes about" in done.stderr
