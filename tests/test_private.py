"""Differential privacy: the noise by its formula, attacks on many releases, bugs that these attacks find."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch

import medistill
from conftest import SMALL_DM
from forging import sealed
from medistill.audits.distillations import distilled_from
from medistill.config import PrivacyConfig
from medistill.data.image import Normalisation
from medistill.data.load import load
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.distil.private_images import Mechanism, PrivateRealImages, generated_images
from medistill.distil.real_images import RealImages
from medistill.errors import ConfigError, PackageError
from medistill.keys import Key
from medistill.package.container import read_files
from medistill.package.guarantee import guarantee_sentences
from medistill.package.package import read_package
from medistill.package.parsing import parse_manifest
from medistill.privacy.accounting import delta_of, epsilon_of, most_correct, most_found, noise_multiplier
from medistill.privacy.noise import secret_normal
from medistill.tasks.task import make_task
from reference import gaussian_mechanism

DELTA = 1e-5
PHANTOM = "phantom:classes=3,images=36,size=16"
ONE_RELEASE = {**SMALL_DM, "privacy": {"epsilon": 4.0}}


# The noise


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1, 3, 8, 20])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_noise_is_what_the_formula_gives(epsilon, delta):
    sigma = noise_multiplier(epsilon, delta)
    assert gaussian_mechanism.delta_of(sigma, epsilon) <= delta * (1 + 1e-9)
    assert delta_of(sigma, epsilon) == pytest.approx(gaussian_mechanism.delta_of(sigma, epsilon), rel=1e-6)
    assert gaussian_mechanism.delta_of(sigma, epsilon) == pytest.approx(delta, rel=1e-3)
    assert gaussian_mechanism.epsilon_of(sigma, delta) == pytest.approx(epsilon, rel=1e-3)
    assert epsilon_of(sigma, delta) == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.7, 2, 5])
def test_epsilon_is_that_of_the_privacy_loss_distribution(sigma):
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    composed = PLDAccountant().compose(GaussianDpEvent(sigma), 2)
    assert epsilon_of(sigma, DELTA, releases=2) == pytest.approx(composed.get_epsilon(DELTA), rel=2e-3)


def test_two_releases_need_more_noise():
    assert noise_multiplier(1, DELTA, releases=2) == pytest.approx(noise_multiplier(1, DELTA) * np.sqrt(2))


def test_success_of_the_best_attack_is_that_of_two_gaussians():
    rng, sigma = np.random.default_rng(0), 1.3
    without, with_ = rng.normal(0, sigma, 200_000), rng.normal(1, sigma, 200_000)
    right = ((without < 0.5).mean() + (with_ > 0.5).mean()) / 2
    assert most_correct(sigma) == pytest.approx(right, abs=0.003)
    threshold = np.quantile(without, 0.99)
    assert most_found(sigma, 0.01) == pytest.approx((with_ > threshold).mean(), abs=0.003)


def test_noise_is_normal_and_never_the_same():
    first, second = secret_normal((200, 500)), secret_normal((200, 500))
    assert abs(first.mean()) < 0.02
    assert first.std() == pytest.approx(1, abs=0.02)
    assert (first**4).mean() == pytest.approx(3, abs=0.15)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


# What one unit can do


def images_of(pixels, targets, patients=None, mechanism=None, kind=PrivateRealImages):
    """Private images over these arrays."""
    task = make_task("multi-class", ["a", "b", "c"])
    split = TensorSplit(np.asarray(pixels, np.uint8), np.eye(3, dtype=np.uint8)[targets])
    real = RealImages(split, task, Normalisation((0.5,), (0.25,)), torch.device("cpu"))
    numbers = None if patients is None else np.unique(patients, return_inverse=True)[1]
    return kind(real, numbers, mechanism or Mechanism("image", 1.0))


class Noiseless(PrivateRealImages):
    """To look at sums themselves."""

    def _noise(self, *shape):
        return torch.zeros(shape, dtype=torch.float64)


def statistic(images, stratum):
    """Eight numbers of an image."""
    return images.flatten(1)[:, :8]


def sums(unit, pixels, targets, patients=None, clip=1.0):
    """What is released, without noise, before it is divided by the counts: (strata, 9)."""
    private = images_of(pixels, targets, patients, Mechanism(unit, 1.0), Noiseless)
    released = private.release(statistic, 8, clip)
    present = torch.bincount(torch.tensor(targets), minlength=3) > 0
    counts = released.counts.double() * present
    return torch.cat([released.means.double() / clip * counts[:, None], 0.2 * counts[:, None]], 1)


def test_no_image_moves_the_sums_further_than_the_sensitivity():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels, targets = rng.integers(0, 256, (12, 1, 16, 16)), rng.integers(0, 3, 12)
        targets[:6] = [0, 1, 2, 0, 1, 2]
        more = sums("image", pixels, targets) - sums("image", pixels[:-1], targets[:-1])
        assert float(more.norm()) <= Mechanism("image", 1.0).sensitivity + 1e-5


def test_no_patient_moves_the_sums_further_whatever_number_of_images_they_have():
    rng = np.random.default_rng(1)
    for own in (1, 2, 7):
        pixels = np.concatenate([rng.integers(0, 256, (12, 1, 16, 16)), np.full((own, 1, 16, 16), 255)])
        targets = np.concatenate([[0, 1, 2] * 4, [1] * own])
        patients = np.array([f"{i}" for i in range(12)] + ["one"] * own)
        more = sums("patient", pixels, targets, patients) - sums("patient", pixels[:12], targets[:12], patients[:12])
        assert float(more.norm()) == pytest.approx(Mechanism("patient", 1.0).sensitivity, abs=1e-4)


def test_an_image_of_several_findings_counts_as_one():
    task = make_task("multi-label", ["a", "b"])
    pixels, targets = np.full((3, 1, 16, 16), 255, np.uint8), np.array([[1, 1], [1, 0], [0, 1]], np.uint8)

    def total(rows):
        real = RealImages(
            TensorSplit(pixels[rows], targets[rows]), task, Normalisation((0.5,), (0.25,)), torch.device("cpu")
        )
        released = Noiseless(real, None, Mechanism("image", 1.0)).release(statistic, 8, 1.0)
        return released.counts.double() * torch.tensor(task.membership(targets[rows]).sum(0) > 0)

    # Without noise counts below 1 are not shown, so the image with both is told from two others.
    assert float((total([0, 1, 2]) - total([1, 2])).max()) == pytest.approx(1 / np.sqrt(2), abs=1e-4)


def test_means_without_noise_are_means():
    rng = np.random.default_rng(2)
    pixels, targets = rng.integers(0, 256, (12, 1, 16, 16)), np.arange(12) % 3
    private = images_of(pixels, targets, None, Mechanism("image", 1.0), Noiseless)
    released = private.release(statistic, 8, 1e6)
    normal = (pixels[targets == 1] / 255 - 0.5) / 0.25
    torch.testing.assert_close(
        released.means[1].double(), torch.tensor(normal.reshape(4, -1)[:, :8].mean(0)), atol=1e-3, rtol=1e-4
    )
    assert released.counts.tolist() == pytest.approx([4, 4, 4], abs=1e-3)


# Attacks


RUNS = 3000


def attacked(unit, kind=PrivateRealImages, epsilon=4.0):
    """What many releases without and with one unit, of five images where it is a patient, prove of ε.

    The unit lies as far from the others as it can. Whoever attacks knows all else, and looks along the direction in
    which the unit moves the sums.
    """
    rng = np.random.default_rng(3)
    own = 5 if unit == "patient" else 1
    pixels = np.concatenate([rng.integers(96, 160, (9, 1, 16, 16)), np.full((own, 1, 16, 16), 255)])
    targets = np.concatenate([[0, 1, 2] * 3, [1] * own])
    patients = np.array([f"{i}" for i in range(9)] + ["one"] * own)
    mechanism = Mechanism(unit, noise_multiplier(epsilon, DELTA))
    found = []
    for rows in (slice(0, 9), slice(0, None)):
        values = []
        for _ in range(RUNS):
            private = images_of(pixels[rows], targets[rows], patients[rows], mechanism, kind)
            released = private.release(statistic, 8, 1.0)
            count = float(released.counts[1])
            values.append(float(released.means[1].sum()) * count / np.sqrt(8) + 0.2 * 0.2 * count)
        found.append(np.array(values))
    return gaussian_mechanism.proved_epsilon(*found, DELTA)


class HalvedNoise(PrivateRealImages):
    def _noise(self, *shape):
        return super()._noise(*shape) / 2


class Uncut(PrivateRealImages):
    def _cut(self, vectors):
        return vectors


class CountedTwice(PrivateRealImages):
    """A patient's images count each for itself."""

    def _weights(self, images, patients):
        return torch.ones(len(patients), dtype=torch.float64)


class FromTheSeed(PrivateRealImages):
    """Noise that everybody who reads the manifest can compute, and so subtract."""

    def _noise(self, *shape):
        drawn = torch.randn(shape, generator=Key(0).child("noise").generator(), dtype=torch.float64)
        return drawn


class AskedTwice(PrivateRealImages):
    """The mean of two answers is what a run knows that asks again where it goes on."""

    def _noise(self, *shape):
        return (super()._noise(*shape) + super()._noise(*shape)) / 2


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_attacks_prove_no_more_than_is_claimed_and_much_of_it(unit, epsilon, record_property):
    proved = attacked(unit, epsilon=epsilon)
    record_property("proved_epsilon", proved)
    assert (0.0 if epsilon == 1.0 else epsilon / 2) < proved <= epsilon


@pytest.mark.parametrize(
    ("unit", "bug"),
    [
        ("image", HalvedNoise),
        ("patient", HalvedNoise),
        ("image", Uncut),
        ("patient", CountedTwice),
        ("image", FromTheSeed),
        ("image", AskedTwice),
    ],
)
def test_attacks_find_bugs(unit, bug):
    assert attacked(unit, bug) > 4.0


# A whole distillation


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
    assert guarantee.numbers == 3 * (networks * filters * places + 1)
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


def test_images_are_gone_after_the_release():
    prepared = prepare(make_phantom(Phantom(classes=3, images=36, size=16)))
    private = images_of(prepared.train.pixels, prepared.train.targets.argmax(1))
    asks = {
        "mean": (lambda x: x.flatten(1), 0, 2, Key(0)), "embeddings": (lambda x: x.flatten(1), 0),
        "draw": (0, torch.tensor([0])), "gradient": (lambda batch: [batch.images], 0, 2, Key(0)),
    }  # fmt: skip
    for query, arguments in asks.items():
        with pytest.raises(TypeError, match="answer no"):
            getattr(private.queried_by((query,)), query)(*arguments)
    held = weakref.ref(private._vault.held)
    private.release(statistic, 8, 1.0)
    gc.collect()
    assert held() is None
    with pytest.raises(TypeError, match="answered"):
        private.release(statistic, 8, 1.0)


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


@pytest.mark.parametrize("shape", [(16, 16), (28, 20), (16, 16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_have_any_shape_and_are_the_same_each_time(shape, channels):
    first, second = (generated_images(channels, shape) for _ in range(2))
    assert first.shape[1:] == (channels, *shape)
    assert torch.equal(first, second)


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
    total = sum(sigma * np.hypot(1, 0.2) * np.sqrt(numbers) / n for n in small["noise"].values())
    assert total == pytest.approx(len(np.unique(patients)), rel=0.02)
