import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medistill.config import DataConfig
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.image import ImageSpec, Normalisation
from medistill.data.preprocess import Preprocessing, channel_statistics, prepare
from medistill.data.resize import fitted, resize
from medistill.errors import ConfigError
from medistill.files import pretty_json
from medistill.package.image_section import image_section
from medistill.package.manifest import Manifest
from medistill.package.package import read_package
from medistill.tasks.task import make_task


def _dataset(images, test=None):
    task = make_task("binary", ("a", "b"))
    targets = task.targets(np.arange(len(images)) % 2)
    return Dataset(
        {"train": Split(images, targets), "test": Split(images if test is None else test, targets)},
        Description("x", task),
    )


def test_eight_bit_pixels_pass_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 20, 24), dtype=np.uint8)
    prepared = prepare(_dataset(images))
    assert np.array_equal(prepared.train.pixels, images)
    assert prepared.preprocessing.image.window == (0, 255)


def test_statistics_come_from_training_only():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 100, (8, 1, 16, 16), dtype=np.uint8)
    bright = rng.integers(200, 256, (8, 1, 16, 16), dtype=np.uint8)
    one, two = prepare(_dataset(train)), prepare(_dataset(train, bright))
    assert one.preprocessing == two.preprocessing
    assert one.normalisation.mean[0] == pytest.approx(train.mean() / 255)
    assert one.normalisation.std[0] == pytest.approx((train / 255).std())


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
def test_window_has_an_inverse(kind):
    raw = (np.random.default_rng(0).random((6, 1, 16, 16)) * 3000 - (0 if kind == np.uint16 else 1000)).astype(kind)
    prepared = prepare(_dataset(raw))
    back = prepared.preprocessing.raw(prepared.train.pixels)
    low, high = prepared.preprocessing.image.window
    assert (low, high) == (raw.min(), raw.max())
    assert np.abs(back - raw).max() <= (high - low) / 255 / 2 + 1e-6


@pytest.mark.parametrize(("shape", "spacing"), [((28, 32), None), ((16, 28, 32), (2.5, 0.7, 0.7))])
def test_json_round_trip(package, shape, spacing):
    image = ImageSpec(1, shape, "int16", (-1000.0, 3095.0), spacing)
    value = Preprocessing(image, Normalisation((0.25,), (0.125,), "horizontal"))
    manifest = read_package(package).manifest.model_copy(update={"image": image_section(value, 1)})
    text = pretty_json(manifest.as_json())
    assert Manifest.model_validate(json.loads(text)).preprocessing == value


def test_channels_both_ways():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    gray = prepare(_dataset(images), DataConfig(channels=1)).train.pixels
    luma = np.einsum("nchw,c->nhw", images, [0.299, 0.587, 0.114])
    assert np.abs(gray[:, 0] - luma).max() <= 0.501
    colour = prepare(_dataset(images[:, :1]), DataConfig(channels=3)).train.pixels
    assert np.array_equal(colour[:, 0], images[:, 0])
    assert np.array_equal(colour[:, 0], colour[:, 2])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 64), st.integers(16, 64))
def test_fitting_keeps_aspect_and_fits(height, width, h, w):
    new_h, new_w = fitted((height, width), (h, w))
    assert 1 <= new_h <= h and 1 <= new_w <= w
    assert new_h == h or new_w == w
    scale = min(h / height, w / width)
    assert abs(new_h - height * scale) <= 1 and abs(new_w - width * scale) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 80), st.integers(4, 80), st.integers(0, 255))
def test_a_constant_image_stays_constant(height, width, value):
    images = np.full((1, 1, height, width), value, dtype=np.uint8)
    assert np.allclose(resize(images, (28, 20)), value, atol=1e-3)


def test_shrinking_is_anti_aliased():
    # A one-pixel checkerboard must become its mean, not one of its colours.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, None]
    assert np.abs(resize(board, (16, 16)) - 127.5).max() < 2


def test_volumes_are_resized_along_each_axis():
    constant = np.full((1, 1, 20, 9, 13), 77, dtype=np.uint8)
    assert np.allclose(resize(constant, (16, 24, 20)), 77, atol=1e-3)
    board = (np.indices((64, 64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, None]
    assert np.abs(resize(board, (16, 16, 16)) - 127.5).max() < 2
    # What does not change along an axis is the picture, resized, along that axis.
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 24), dtype=np.uint8)
    wanted = resize(picture, (16, 12))
    for axis in (2, 3, 4):
        volume = np.repeat(np.expand_dims(picture, axis), 40, axis=axis)
        shape = [16, 12]
        shape.insert(axis - 2, 20)
        found = np.moveaxis(resize(volume, tuple(shape)), axis, 0)
        assert found.shape == (20, 1, 1, 16, 12) and np.abs(found - wanted).max() < 1e-3


def test_pictures_and_volumes_are_not_mixed():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 1, 20, 20), dtype=np.uint8)
    volumes = np.random.default_rng(0).integers(0, 256, (4, 1, 20, 20, 20), dtype=np.uint8)
    with pytest.raises(ConfigError, match="pictures and volumes"):
        prepare(_dataset(pictures, volumes))
    with pytest.raises(ConfigError, match="pictures and volumes"):
        prepare(_dataset(volumes)).preprocessing.apply(pictures)
    with pytest.raises(ConfigError, match="one number, or 3"):
        prepare(_dataset(volumes), DataConfig(size=(16, 20)))
    assert prepare(_dataset(volumes), DataConfig(size=16)).train.pixels.shape == (4, 1, 16, 16, 16)


def test_other_site_at_other_size_is_brought_to_ours():
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 20, 20), dtype=np.uint8)
    recorded = prepare(_dataset(images)).preprocessing
    other = np.random.default_rng(1).integers(0, 256, (3, 3, 50, 33), dtype=np.uint8)
    assert recorded.apply(other).shape == (3, 1, 20, 20)


def test_small_images_are_enlarged_and_small_requests_refused():
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 12), dtype=np.uint8)
    assert min(prepare(_dataset(images)).train.pixels.shape[2:]) == 16
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        DataConfig(size=8)


def test_constant_channel_does_not_divide_by_zero():
    mean, std = channel_statistics(np.zeros((2, 1, 4, 4), dtype=np.uint8))
    assert mean == (0,) and std[0] > 0
