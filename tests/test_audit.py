"""Audit checks: their contract, and resemblance against images that were planted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import medistill
from medistill.audits.audit import Population, audits, populations
from medistill.audits.checks.resemblance import Resemblance, nearest_images
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.keys import Key
from medistill.package.package import read_package
from medistill.testing import AuditConformance

PHANTOM = "phantom:classes=3,images=60,size=16"


class TestResemblance(AuditConformance):
    audit = "resemblance"


class TestMembership(AuditConformance):
    audit = "membership"
    options = {"training_steps": 3}


class TestCanaries(AuditConformance):
    audit = "canaries"
    options = {"iterations": 2}


class TestSoftLabels(AuditConformance):
    audit = "soft_labels"
    options = {"training_steps": 4}


class TestLabelFlips(AuditConformance):
    audit = "label_flips"


class TestClassOutliers(AuditConformance):
    audit = "class_outliers"


class TestTriggers(AuditConformance):
    audit = "triggers"


class TestPixelStatistics(AuditConformance):
    audit = "pixel_statistics"


class TestExactInclusion(AuditConformance):
    audit = "exact_inclusion"


class TestNearestNeighbours(AuditConformance):
    audit = "nearest_neighbours"


class TestTextInPixels(AuditConformance):
    audit = "text_in_pixels"


class TestSite(AuditConformance):
    audit = "site"


def test_conformance_is_asked_of_every_check():
    assert set(audits()) == {case.audit for case in AuditConformance.__subclasses__()}


@pytest.fixture(scope="module")
def prepared():
    return prepare(load(PHANTOM))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    out = tmp_path_factory.mktemp("audited") / "p"
    settings = {"method": {"name": "dm", "iterations": 4, "networks": 2, "filters": 8, "real_batch": 8}}
    medistill.distill(PHANTOM, out=out, ipc=4, settings=settings)
    return read_package(out)


def resemblance(package, prepared, *, held_out=True):
    members, others = populations(prepared)
    nobody = Population([], np.zeros((0, prepared.task.outputs), dtype=np.uint8))
    return audits()["resemblance"]().run(package, members, others if held_out else nobody, Key(0))


def with_images(package, rows, images):
    pixels = package.pixels.copy()
    pixels[rows] = images
    return replace(package, pixels=pixels)


def test_the_nearest_image_is_the_one_most_correlated(prepared):
    images = prepared.splits["test"].pixels[:5]
    found = nearest_images(images, [prepared.train.pixels[:20], prepared.train.pixels[20:]])
    flat = prepared.train.pixels.reshape(len(prepared.train), -1).astype(float)
    for image, correlation, row in zip(images, found.correlation, found.row, strict=True):
        every = [np.corrcoef(image.ravel().astype(float), other)[0, 1] for other in flat]
        assert row == int(np.argmax(every)) and correlation == pytest.approx(max(every), abs=1e-5)


def test_brightness_and_contrast_hide_no_copy(prepared):
    images = prepared.train.pixels[:4]
    dimmed = (images // 2 + 60).astype(np.uint8)
    found = nearest_images(dimmed, [prepared.train.pixels])
    assert found.row.tolist() == [0, 1, 2, 3] and (found.correlation > 0.995).all()


def test_a_constant_image_resembles_nobody(prepared):
    flat = np.full((1, 1, 16, 16), 120, dtype=np.uint8)
    assert nearest_images(flat, [prepared.train.pixels]).correlation.tolist() == [0.0]


def test_planted_copies_are_counted_and_make_the_package_one_of_real_images(package, prepared):
    found = resemblance(with_images(package, [1, 7], prepared.train.pixels[[3, 30]]), prepared)
    assert found.verdict == "fail" and found.real_images == 2
    assert found.details["near_duplicates"] == 2 and "2 of 12 images" in found.explanation


def test_copies_of_images_that_took_no_part_are_no_finding(package, prepared):
    found = resemblance(with_images(package, [1, 7], prepared.splits["test"].pixels[[0, 5]]), prepared)
    assert found.real_images == 0 and found.verdict == "pass"
    assert found.details["share_over_0.95_held_out"] > found.details["share_over_0.95_training"]


def test_images_near_training_images_but_not_copies_are_a_warning(package, prepared):
    rng = np.random.default_rng(0)
    images = prepared.train.pixels[:12].astype(float)
    noisy = np.clip(images + rng.normal(0, 0.2 * images.std(), images.shape), 0, 255).astype(np.uint8)
    found = resemblance(replace(package, pixels=noisy), prepared)
    assert found.verdict == "warn" and found.real_images == 0
    assert found.value == pytest.approx(
        found.details["share_over_0.95_training"] - found.details["share_over_0.95_held_out"], abs=1e-4
    )


def smooth_images(rng, number):
    """Independent images of one smooth family."""
    waves = rng.normal(size=(number, 6, 1, 1)) * np.cos(np.outer(range(1, 7), np.arange(16) / 5))[:, None, :]
    return np.clip(128 + 25 * waves.sum(axis=1, keepdims=True) + np.zeros((1, 1, 16, 1)), 0, 255).astype(np.uint8)


def population(images, patients=None):
    return Population([images], np.ones((len(images), 1), np.uint8), patients)


@pytest.mark.parametrize(("members", "others"), [(2000, 250), (250, 2000)])
def test_the_verdict_does_not_depend_on_how_many_images_took_part(members, others):
    rng = np.random.default_rng(1)
    package = SimpleNamespace(pixels=smooth_images(rng, 200)[:, :, ::2, ::2])
    sides = [population(smooth_images(rng, number)) for number in (members, others)]
    finding = Resemblance().run(package, *sides, Key(0))
    raw = finding.details["share_over_0.95_training"] - finding.details["share_over_0.95_held_out"]
    assert abs(raw) > 0.03, "the nearest of many is nearer"
    assert finding.verdict == "pass"


@pytest.mark.parametrize("images", [3, 12, 40])
def test_copies_are_noticed_beside_few_held_out_images(prepared, images):
    rng = np.random.default_rng(images)
    everybody = rng.normal(128, 40, size=(1060, 1, 8, 8)).clip(0, 255).astype(np.uint8)
    noisy = everybody[:images] + rng.normal(0, 8, size=(images, 1, 8, 8))
    package = SimpleNamespace(pixels=noisy.clip(0, 255).astype(np.uint8))
    for key in range(5):
        finding = Resemblance().run(package, population(everybody[:1000]), population(everybody[1000:]), Key(key))
        assert finding.verdict == "warn" and finding.details["stand_out"] == images


def test_images_of_training_patients_are_no_held_out_images(prepared):
    rng = np.random.default_rng(0)
    faces = rng.normal(128, 40, size=(40, 1, 8, 8))

    def photographs(rows):
        return (faces[rows] + rng.normal(0, 6, size=(len(rows), 1, 8, 8))).clip(0, 255).astype(np.uint8)

    seen, unseen = np.arange(30), np.arange(20, 40)
    members = population(photographs(seen), seen.astype(str))
    package = SimpleNamespace(pixels=photographs(seen))
    finding = Resemblance().run(package, members, population(photographs(unseen), unseen.astype(str)), Key(0))
    assert finding.verdict == "warn"
    assert finding.details["held_out_images"] == 10
    assert finding.details["held_out_images_of_training_patients"] == 10


def test_a_patient_is_ahead_of_other_patients_not_of_the_own_images():
    rng = np.random.default_rng(0)
    one, other = rng.normal(128, 40, size=(2, 1, 1, 8, 8)).clip(0, 255).astype(np.uint8)
    apart = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    real = np.concatenate([one, one, other, one])
    for split in range(1, 4):
        parts = [real[:split], real[split:]]
        near = nearest_images(one, parts, np.array(["a", "a", "b", "a"]))
        assert near.row == [0] and near.second == pytest.approx(apart, abs=1e-6)
        assert nearest_images(one, parts).second == pytest.approx(1)


def test_copies_stored_smaller_are_found(prepared, tmp_path):
    medistill.distill(PHANTOM, out=tmp_path / "p", ipc=2, method="random", factor=2)
    package = read_package(tmp_path / "p")
    assert package.stored_shape == (8, 8)
    assert resemblance(package, prepared).real_images == len(package)


def test_without_held_out_images_the_share_itself_counts(package, prepared):
    found = resemblance(package, prepared, held_out=False)
    assert found.value == found.details["share_over_0.95_training"]
    assert "no image that took no part" in found.explanation


def test_members_are_training_images_and_others_the_rest(prepared):
    members, others = populations(prepared)
    assert len(members) == len(prepared.train)
    assert len(others) == sum(len(prepared.splits[name]) for name in ("val", "test"))
    assert not set(members.patients) & set(others.patients)


def test_one_step_from_real_images_is_called_real_on_console_card_and_manifest(tmp_path, cli):
    settings = ("--set", "method.start=real", "--set", "method.iterations=1")
    status, out, err = cli("distill", "phantom", "--method", "dm", "--ipc", 3, "--out", tmp_path / "p", *settings)
    assert status == 0
    assert "attention: these are real patient images" in out and "nearly identical to training images" in out
    assert "warning: start: images are computed from real ones" in err
    package = read_package(tmp_path / "p")
    privacy = package.manifest.privacy
    assert privacy.contains_real_images and privacy.starts_from_real_images and package.manifest.start == "real"
    card = (tmp_path / "p" / "README.md").read_text()
    assert card.startswith("# 12 real images of phantom") and "**These are real images of patients**" in card
    assert "it contains real patient images" in card and "distilled images of" not in card
    status, out, _ = cli("verify", tmp_path / "p")
    assert status == 0 and "real patient images" in out


def test_from_noise_the_package_says_what_was_measured_and_nothing_more(tmp_path, cli):
    options = ["--ipc", 2, "--out", tmp_path / "p"]
    for setting in ("iterations=4", "networks=2", "filters=8", "real_batch=8"):
        options += ["--set", f"method.{setting}"]
    status, out, err = cli("distill", PHANTOM, "--method", "dm", *options)
    assert status == 0 and "start:" not in err and "attention" not in out
    assert "resemblance to training images: correlation" in out.lower()
    card = (tmp_path / "p" / "README.md").read_text()
    assert "- Measured, resemblance to training images: Correlation" in card
    for claim in ("anonym", "private", "photographs of anybody"):
        assert claim not in card.replace("differentially private", "")
