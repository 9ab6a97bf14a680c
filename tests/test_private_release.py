"""A private release: noise by its formula, how far one person moves it, attacks on many, bugs that these find."""

import gc
import weakref

import numpy as np
import pytest
import torch

from medistill.data.image import Normalisation
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.distil.private_images import CENTRE_CLIP, Mechanism, PrivateRealImages, generated_images
from medistill.distil.real_images import RealImages
from medistill.keys import Key
from medistill.privacy.accounting import delta_of, epsilon_of, most_correct, most_found, noise_multiplier
from medistill.privacy.noise import secret_normal
from medistill.tasks.task import make_task
from reference import gaussian_mechanism

DELTA = 1e-5


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


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_mean_of_all_and_classes_together_are_one_release(share):
    from dp_accounting import ComposedDpEvent, GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    both = Mechanism("image", noise_multiplier(2, DELTA), centre_share=share).multipliers
    composed = PLDAccountant().compose(ComposedDpEvent([GaussianDpEvent(sigma) for sigma in both]))
    assert composed.get_epsilon(DELTA) == pytest.approx(2, rel=2e-3)


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


def test_means_are_measured_from_that_of_all_units():
    """Images that all lie far from the origin keep what they differ by, where else nearly all would be cut off."""
    rng = np.random.default_rng(4)
    pixels, targets = rng.integers(200, 256, (12, 1, 16, 16)), np.arange(12) % 3
    exact = ((pixels / 255 - 0.5) / 0.25).reshape(12, -1)[:, :8]
    length = float(np.linalg.norm(exact.mean(0))) / 1.5
    distance = []
    for share in (0.0, 0.2):
        private = images_of(pixels, targets, None, Mechanism("image", 1e-6, centre_share=share))
        found = private.release(statistic, 8, length, torch.zeros(8)).means.numpy()
        distance.append(max(np.linalg.norm(found[k] - exact[targets == k].mean(0)) for k in range(3)))
    assert distance[0] > 0.3 * length
    assert distance[1] < 1e-3 * length


def test_the_mean_of_all_is_shorter_where_noise_drowns_it():
    pixels, targets = np.full((12, 1, 16, 16), 255), np.arange(12) % 3
    centres = []
    for sigma in (1e-6, 0.5, 1e6):
        private = images_of(pixels, targets, None, Mechanism("image", sigma, centre_share=0.2))
        total = torch.cat([torch.full((8,), 10.0), torch.tensor([0.2 * 12])]).double()
        centres.append(float(private._centre(total, 1.0).norm()))
    whole = np.sqrt(8) * 10 / 12
    noise = 8 * (0.5 / np.sqrt(0.2) * np.hypot(1, 0.2) / 12) ** 2
    assert centres == pytest.approx([whole, whole * (1 - noise / whole**2), 0.0], rel=1e-6)


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


class Watched(PrivateRealImages):
    """Shows all that is released: the sums with their noise, in their order."""

    def _noisy(self, total, multiplier):
        shown = super()._noisy(total, multiplier)
        self.shown = [*getattr(self, "shown", []), shown]
        return shown


class PaidOnce(Watched):
    """Both answers have the noise of one alone."""

    def _noisy(self, total, multiplier):
        return super()._noisy(total, self.mechanism.noise_multiplier)


def attacked_in_both_answers(kind, share=0.4, epsilon=4.0, runs=4000):
    """As ``attacked``, by the likelihood of both answers together, where what all else adds to the second, and what
    the unit would, is computed from the first as whoever knows all else can.
    """
    rng = np.random.default_rng(5)
    pixels = np.concatenate([rng.integers(96, 160, (9, 1, 16, 16)), np.full((1, 1, 16, 16), 255)])
    targets = np.array([0, 1, 2] * 3 + [1])
    mechanism = Mechanism("image", noise_multiplier(epsilon, DELTA), centre_share=share)
    vectors = torch.tensor((pixels.reshape(10, -1)[:, :8] / 255 - 0.5) / 0.25)

    def parts(centre, clip):
        v = (vectors - centre) / clip
        return torch.cat([v / v.norm(dim=1, keepdim=True).clamp(min=1), torch.full((10, 1), 0.2)], 1)

    found = []
    for rows in (slice(0, 9), slice(0, 10)):
        values = []
        for _ in range(runs):
            private = images_of(pixels[rows], targets[rows], None, mechanism, kind)
            private.release(statistic, 8, 1.0, torch.zeros(8))
            first, second = private.shown
            one = parts(torch.zeros(8), CENTRE_CLIP)
            two = parts(private._centre(first[0], CENTRE_CLIP), 1.0)
            others = sum(two[i] for i in range(9) if targets[i] == 1)
            moved = ((first[0] - one[:9].sum(0)) @ one[9], (second[1] - others) @ two[9])
            values.append(float(share * moved[0] + (1 - share) * moved[1]))
        found.append(np.array(values))
    return gaussian_mechanism.proved_epsilon(*found, DELTA)


def test_both_answers_together_prove_no_more_than_is_claimed(record_property):
    proved = attacked_in_both_answers(Watched)
    record_property("proved_epsilon", proved)
    assert 2.0 < proved <= 4.0


def test_both_answers_with_the_noise_of_one_are_found():
    assert attacked_in_both_answers(PaidOnce) > 4.0


# What is left behind


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


@pytest.mark.parametrize("shape", [(16, 16), (28, 20), (16, 16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_have_any_shape_and_are_the_same_each_time(shape, channels):
    first, second = (generated_images(channels, shape) for _ in range(2))
    assert first.shape[1:] == (channels, *shape)
    assert torch.equal(first, second)
