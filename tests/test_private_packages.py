"""Private packages: what their manifests tell, what is asked again, what is refused."""

import json

import numpy as np
import pytest

import medistill
from conftest import SMALL_DM
from forging import sealed
from medistill.audits.distillations import distilled_from
from medistill.commands.guarantee import EPSILONS, outlook
from medistill.config import DataConfig, PrivacyConfig
from medistill.data.load import load
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import prepare
from medistill.distil.configuration import configured
from medistill.distil.private_images import PrivateRealImages
from medistill.errors import ConfigError, PackageError
from medistill.keys import Key
from medistill.package.container import read_files
from medistill.package.guarantee import guarantee_sentences
from medistill.package.package import read_package
from medistill.package.parsing import parse_manifest
from medistill.privacy.accounting import noise_multiplier
from medistill.texts import check_text
from reference import gaussian_mechanism

DELTA = 1e-5
PHANTOM = "phantom:classes=3,images=36,size=16"
ONE_RELEASE = {**SMALL_DM, "privacy": {"epsilon": 4.0}}


def distilled(out, **changes):
    return medistill.distill(PHANTOM, out=out, ipc=2, settings={**ONE_RELEASE, **changes})


@pytest.fixture(scope="module")
def private_package(tmp_path_factory):
    out = tmp_path_factory.mktemp("private") / "p"
    distilled(out)
    return out


def test_the_manifest_says_all_that_a_guarantee_needs(private_package):
    package = read_package(private_package)
    guarantee = package.manifest.privacy.guarantee
    assert (guarantee.epsilon, guarantee.delta, guarantee.unit, guarantee.releases) == (4.0, 1e-5, "patient", 1)
    assert gaussian_mechanism.epsilon_of(guarantee.noise_multiplier, 1e-5) == pytest.approx(4.0, rel=1e-3)
    networks, filters, places = 2, 8, 4 * 4
    assert guarantee.numbers == (1 + 3) * (networks * filters * places + 1), "the mean of all, and three classes"
    assert guarantee.centre_share == 0.1
    assert guarantee.centre_clip == pytest.approx(2 * guarantee.clip), "1.7 and 0.85 times one length"
    assert f"lengths {guarantee.centre_clip:.4g} and {guarantee.clip:.4g}" in " ".join(guarantee_sentences(guarantee))
    card = (private_package / "README.md").read_text()
    assert all(sentence in card for sentence in guarantee_sentences(guarantee))
    assert "nothing is guaranteed" not in card


def without_numbers(manifest):
    """A manifest but for the noisy counts, which are released, and what follows from images."""
    content = json.loads(json.dumps(manifest))
    del content["provenance"]["data"]["per_stratum"], content["provenance"]["data"]["training_images"]
    return {name: value for name, value in content.items() if name not in ("files", "package_id")}


def neighbours(tmp_path, name="set", splits=("train", "val", "test")):
    """Two data sets as files, of which one has an image more, brighter than all others, of another patient."""
    data = make_phantom(Phantom(classes=3, images=36, size=16))
    for number, rows in enumerate((slice(0, -1), slice(None))):
        arrays = {}
        for split in splits:
            part = data.splits[split]
            images, labels, patients = part.images.copy(), part.targets.argmax(1), part.patients.copy()
            if split == "train":
                images[-1], patients[-1] = 255, "bright"
                images, labels, patients = images[rows], labels[rows], patients[rows]
            arrays |= {f"{split}_images": images[:, 0], f"{split}_labels": labels, f"{split}_patients": patients}
        folder = tmp_path / str(number)
        folder.mkdir()
        np.savez(folder / f"{name}.npz", **arrays)
        yield folder / f"{name}.npz"


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train",)], ids=["split before", "split here"])
def test_nothing_exact_of_the_data_reaches_the_manifest(tmp_path, splits):
    manifests = []
    for number, path in enumerate(neighbours(tmp_path, splits=splits)):
        out = tmp_path / f"p{number}"
        medistill.distill(path, out=out, ipc=2, settings=ONE_RELEASE)
        manifests.append(json.loads((out / "manifest.json").read_text()))
    first, second = (without_numbers(m) for m in manifests)
    clips = [m["privacy"]["guarantee"]["clip"] for m in manifests]
    assert clips[0] == clips[1]
    assert first == second


def test_statistics_that_are_exact_are_found(tmp_path):
    found = []
    for path in neighbours(tmp_path):
        found.append(prepare(load(path)).normalisation)
    assert found[0] != found[1]


def test_a_run_that_goes_on_asks_nothing_again(tmp_path, monkeypatch):
    from medistill.distil import checkpoint

    whole = tmp_path / "whole"
    asked = []
    release = PrivateRealImages.release

    def counted(self, *args, **kwargs):
        asked.append(1)
        return release(self, *args, **kwargs)

    monkeypatch.setattr(PrivateRealImages, "release", counted)

    def killed(self, state, losses):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Saver, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            distilled(whole)
    kept = (tmp_path / "whole.run" / "checkpoint.safetensors").read_bytes()
    distilled(whole)
    first = (whole / "manifest.json").read_bytes()
    assert asked == [1]
    # From what was released all else follows, to the same bytes.
    again = tmp_path / "again"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Saver, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            distilled(again)
    (tmp_path / "again.run" / "checkpoint.safetensors").write_bytes(kept)
    distilled(again)
    assert (again / "manifest.json").read_bytes() == first


def test_the_same_command_elsewhere_has_other_noise(private_package, tmp_path):
    distilled(tmp_path / "p")
    assert (tmp_path / "p" / "distilled.npz").read_bytes() != (private_package / "distilled.npz").read_bytes()


def test_making_it_anew_tells_what_both_cost(tmp_path):
    assert not [told for told in distilled(tmp_path / "p")["warnings"] if "privacy" in told]
    again = medistill.distill(PHANTOM, out=tmp_path / "p", ipc=2, settings=ONE_RELEASE, overwrite=True)
    (told,) = [told for told in again["warnings"] if "privacy" in told]
    both = float(told.split("ε = ")[1].split()[0])
    single = noise_multiplier(4.0, DELTA)
    assert both == pytest.approx(gaussian_mechanism.epsilon_of(single / np.sqrt(2), DELTA), rel=0.01)


def test_an_evaluation_is_told_to_be_outside(private_package):
    from conftest import TINY

    medistill.evaluate(private_package, on=PHANTOM, config=TINY, attach=True)
    package = read_package(private_package)
    assert package.manifest.evaluation.data.same_as_distilled
    assert package.manifest.privacy.guarantee.outside == ["evaluation"]
    told = (private_package / "manifest.json").read_text() + (private_package / "README.md").read_text()
    assert load(PHANTOM).fingerprint["sha256"] not in told
    assert package.manifest.evaluation.images["full"] == package.manifest.provenance.data.training_images
    assert (
        "Outside the guarantee, which is then one of the images and their labels alone: evaluation"
        in (private_package / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "dc"}}, "ask once"),
        ({"method": {**SMALL_DM["method"], "start": "real"}}, "noise, under --epsilon"),
        ({"labels": {"teachers": 1}}, "0 under --epsilon"),
        ({"method": {**SMALL_DM["method"], "networks": 0}}, "1 or more"),
        ({"privacy": {"epsilon": 1e9}}, "0.01 to 100"),
        ({"method": {**SMALL_DM["method"], "precision": "bfloat16"}}, "float32, under --epsilon"),
        ({"privacy": {"epsilon": 1.0, "clip": 1e9}}, "less than or equal to 100"),
        ({"privacy": {"epsilon": 1.0, "unit": "hospital"}}, "image"),
        ({"privacy": {"clip": 1.0}}, "missing"),
    ],
)
def test_what_cannot_be_private_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        distilled(tmp_path / "p", **changes)
    assert not (tmp_path / "p").exists()


def test_a_ratio_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--ipc 1 to"):
        medistill.distill(PHANTOM, out=tmp_path / "p", ratio=0.1, settings=ONE_RELEASE)


def test_deep_images_need_a_window(tmp_path):
    data = make_phantom(Phantom(classes=3, images=36, size=16))
    arrays = {}
    for split, part in data.splits.items():
        arrays |= {
            f"{split}_images": part.images[:, 0].astype(np.int16) * 8 - 1000,
            f"{split}_labels": part.targets.argmax(1),
        }
    path = tmp_path / "ct.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=r"data\.window"):
        medistill.distill(path, out=tmp_path / "p", ipc=2, settings=ONE_RELEASE)
    settings = {**ONE_RELEASE, "data": {"window": [-1000, 1000]}}
    medistill.distill(path, out=tmp_path / "p", ipc=2, settings=settings)
    package = read_package(tmp_path / "p")
    assert package.preprocessing.image.window == (-1000, 1000)
    assert package.manifest.privacy.guarantee.unit == "image"


def test_a_package_that_is_gone_is_not_made_again_without_a_word(tmp_path):
    out = tmp_path / "p"
    distilled(out)
    out.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="asked before"):
        distilled(out)
    for times in (2, 3):
        again = medistill.distill(PHANTOM, out=out, ipc=2, settings=ONE_RELEASE, overwrite=True)
        (told,) = [warning for warning in again["warnings"] if "all together" in warning]
        sigma = noise_multiplier(4.0, DELTA) / np.sqrt(times)
        assert float(told.split("ε = ")[1].split()[0]) == pytest.approx(
            gaussian_mechanism.epsilon_of(sigma, DELTA), rel=0.01
        )


def test_data_that_nothing_is_wrong_with_have_no_warning(tmp_path):
    few = {"method": {**SMALL_DM["method"], "iterations": 2}, "privacy": {"epsilon": 8.0}}
    made = medistill.distill(
        "phantom:classes=2,images=160,size=16", out=tmp_path / "p", ipc=2, settings=few, progress=True
    )
    assert made["warnings"] == []
    assert "ε = 8" in made["guarantee"][0]


def test_other_units_have_no_common_epsilon(tmp_path):
    distilled(tmp_path / "p")
    changed = {**ONE_RELEASE, "privacy": {"epsilon": 4.0, "unit": "image"}}
    again = medistill.distill(PHANTOM, out=tmp_path / "p", ipc=2, settings=changed, overwrite=True)
    assert any("no common ε" in told for told in again["warnings"])


def test_a_class_of_one_patient_may_be_missing(tmp_path):
    """Else the command's success would tell of that patient."""
    data = make_phantom(Phantom(classes=3, images=36, size=16))
    arrays = {"class_names": np.array(["a", "b", "c"])}
    for split, part in data.splits.items():
        kept = part.targets.argmax(1) != 1 if split == "train" else np.ones(len(part), bool)
        arrays |= {f"{split}_images": part.images[kept, 0], f"{split}_labels": part.targets.argmax(1)[kept]}
    np.savez(tmp_path / "set.npz", **arrays)
    medistill.distill(tmp_path / "set.npz", out=tmp_path / "p", ipc=2, settings=ONE_RELEASE)
    assert len(set(read_package(tmp_path / "p").synthetic_per_stratum)) == 1


def test_a_guarantee_with_too_little_noise_is_refused(private_package, tmp_path):
    files = read_files(private_package)
    manifest = json.loads(files["manifest.json"])
    manifest["privacy"]["guarantee"]["noise_multiplier"] /= 2
    with pytest.raises(PackageError, match="noise is not enough"):
        parse_manifest(sealed(files, manifest)["manifest.json"], "manifest.json")


def test_audits_distil_with_the_noise_of_the_guarantee(private_package, monkeypatch):
    """Shadows of another mechanism would say nothing of this one."""
    asked = []
    release = PrivateRealImages.release

    def counted(self, *args, **kwargs):
        asked.append(self.mechanism)
        return release(self, *args, **kwargs)

    monkeypatch.setattr(PrivateRealImages, "release", counted)
    package, prepared = read_package(private_package), prepare(load(PHANTOM))
    distilled_from(package, prepared.train, prepared.dataset.train.patients, 2, Key(5))
    guarantee = package.manifest.privacy.guarantee
    assert [(m.unit, m.noise_multiplier) for m in asked] == [(guarantee.unit, guarantee.noise_multiplier)]


def test_how_much_a_data_set_can_bear_follows_from_its_size():
    small, large = (
        medistill.check(f"phantom:classes=3,images={n}", privacy=PrivacyConfig(epsilon=1.0))["privacy"]
        for n in (300, 3000)
    )
    assert max(small["noise"].values()) > 5 * max(large["noise"].values())
    sigma, numbers = noise_multiplier(1.0, DELTA), 20 * 1024
    patients = make_phantom(Phantom(classes=3, images=300)).train.patients
    sigma /= np.sqrt(0.9)
    total = sum(sigma * np.hypot(1, 0.2) * np.sqrt(numbers) / n for n in small["noise"].values())
    assert total == pytest.approx(len(np.unique(patients)), rel=0.02)


def test_without_a_guarantee_the_least_epsilon_is_offered_that_the_data_bear():
    small, large = (medistill.check(f"phantom:classes=3,images={n}") for n in (60, 3000))
    assert (small["offer"]["epsilon"], small["offer"]["unit"]) == (None, "patient")
    assert "bear the noise of no ε" in check_text(small)
    epsilon, reading = large["offer"]["epsilon"], DataConfig()
    assert f"noise of --epsilon {epsilon:g} (per patient) would cost little" in check_text(large)
    dataset = load("phantom:classes=3,images=3000")
    below = EPSILONS[EPSILONS.index(epsilon) - 1]
    bearable = [outlook(dataset, PrivacyConfig(epsilon=e), reading)["bearable"] for e in (below, epsilon)]
    assert bearable == [False, True]


def test_nothing_is_offered_that_would_be_refused(tmp_path):
    asked = {"data": {"steps": [{"name": "clip"}]}}
    assert medistill.check(PHANTOM, config=DataConfig(**asked["data"]))["offer"] is None
    assert medistill.distill(PHANTOM, out=tmp_path / "p", ipc=2, settings={**SMALL_DM, **asked})["offer"] is None
    with pytest.raises(ConfigError, match="looks at training images"):
        distilled(tmp_path / "q", **asked)


def test_the_method_by_its_name_has_the_settings_of_one_release():
    named, _ = configured("dm", 1, None, None, {}, {"privacy.epsilon": 1.0})
    unnamed, _ = configured(None, 1, None, None, {}, {"privacy.epsilon": 1.0})
    assert named == unnamed
    assert (named.networks, named.augment) == (20, False)
