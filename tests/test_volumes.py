"""Images of three dimensions: reading, bringing to size, augmentation, networks, storage and previews."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from medistill.augment import OPERATIONS, augment_each, sample_augmentation, siamese
from medistill.data.image import decode, decoded, encode, encoded
from medistill.data.load import load
from medistill.data.preprocess import prepare, prepared_shape
from medistill.data.readers.npz import read_npz
from medistill.data.resize import resize
from medistill.errors import ConfigError, DataError
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.zoo import BUILDERS, make_network
from medistill.package.package import preview

SHAPE = (16, 20, 24)


def save(path, images, labels=None):
    labels = np.arange(len(images)) % 2 if labels is None else labels
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


def test_an_npz_of_volumes_is_read_with_one_channel(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (6, *SHAPE), dtype=np.uint8)
    dataset = read_npz(save(tmp_path / "v.npz", images))
    assert dataset.image.shape == SHAPE and dataset.image.channels == 1 and dataset.image.dimensions == 3
    assert np.array_equal(dataset.train.images[:, 0], images)


def test_volumes_of_three_channels_are_told_from_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, *SHAPE, 3), dtype=np.uint8)
    dataset = read_npz(save(tmp_path / "v.npz", images))
    assert dataset.train.images.shape == (4, 3, *SHAPE)
    assert np.array_equal(dataset.train.images[:, 2], images[..., 2])


def test_channels_that_come_first_are_refused_with_a_remedy_that_works(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 20, 24), dtype=np.uint8)
    with pytest.raises(DataError, match=r"numpy.moveaxis\(images, 1, -1\)"):
        read_npz(save(tmp_path / "first.npz", images))
    assert read_npz(save(tmp_path / "last.npz", np.moveaxis(images, 1, -1))).train.images.shape == (4, 3, 20, 24)


def test_the_official_name_is_read_at_its_sizes(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
    with pytest.raises(DataError, match="allowed: 28, 64"):
        load("adrenalmnist3d_128")


def test_a_size_of_one_number_makes_cubes_and_two_are_refused():
    assert prepared_shape(SHAPE, (32, 32)) == (32, 32, 32)
    assert prepared_shape(SHAPE, (16, 24, 32)) == (16, 24, 32)
    assert prepared_shape((8, 20, 24), None) == (16, 20, 24), "few slices become more, and pixels stay as many"
    assert prepared_shape((8, 20), None) == (16, 40), "a picture keeps its proportions"
    with pytest.raises(ConfigError, match="up to 4096 a side; give --size"):
        prepared_shape((16, 4100), None)
    with pytest.raises(ConfigError, match="one number, or 3"):
        prepared_shape(SHAPE, (16, 24))


def test_resizing_keeps_what_is_smooth_and_the_aspect():
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in (24, 24, 24)), indexing="ij")).sum(0)
    small = resize(grid[None, None], (12, 12, 12))[0, 0]
    assert np.abs(small - zoom(grid, 0.5, order=1, grid_mode=True, mode="nearest")).max() < 0.05
    assert small.mean() == pytest.approx(grid.mean(), abs=0.01)
    # A volume of another aspect repeats its edge where the canvas is longer.
    wide = resize(np.ones((1, 1, 8, 16, 16)), (16, 16, 16))
    assert wide.shape == (1, 1, 16, 16, 16) and np.allclose(wide, 1)


def test_storing_at_half_the_side_keeps_the_mean_of_each_block():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 1, 16, 16, 16), dtype=np.uint8)
    small = encode(torch.from_numpy(pixels).float(), (8, 8, 8))
    blocks = pixels.reshape(2, 1, 8, 2, 8, 2, 8, 2).mean(axis=(3, 5, 7))
    assert np.allclose(small.numpy(), blocks, atol=1e-4)
    assert decode(small, (16, 16, 16)).shape == (2, 1, 16, 16, 16)
    assert decoded(encoded(pixels, (8, 8, 8)), (16, 16, 16)).dtype == np.uint8


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
def test_each_siamese_operation_changes_volumes_alike_and_lets_gradients_through(operation):
    x = torch.rand(3, 1, *SHAPE, generator=Key(0).generator()).requires_grad_(True)
    drawn = None
    for seed in range(200):
        generator = Key(seed).generator()
        if int(torch.randint(len(OPERATIONS), (1,), generator=Key(seed).generator())) == operation:
            drawn = siamese(generator, "both")
            break
    y = drawn(x)
    assert y.shape == x.shape
    assert torch.allclose(drawn(x[:1]), y[:1], atol=1e-6)
    y.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_augmentation_for_training_changes_each_volume_by_its_own():
    x = torch.rand(1, 1, *SHAPE, generator=Key(0).generator()).repeat(4, 1, 1, 1, 1)
    y = augment_each(x, sample_augmentation(4, Key(1).generator(), 3), "none")
    assert y.shape == x.shape and not torch.allclose(y[0], y[1])


def test_no_augmentation_is_none():
    x = torch.rand(2, 1, *SHAPE, generator=Key(0).generator())
    u = torch.zeros(2, 14)
    assert torch.allclose(augment_each(x, u, "none"), x, atol=1e-4)


def test_mirror_images_of_volumes_are_drawn_along_the_axes_allowed():
    x = torch.rand(1, 1, *SHAPE, generator=Key(0).generator())
    u = torch.zeros(1, 14)
    u[:, [5, 6, 12]] = -1
    assert torch.allclose(augment_each(x, u, "horizontal"), x.flip(4), atol=1e-4)
    assert torch.allclose(augment_each(x, u, "both"), x.flip(2, 3, 4), atol=1e-4)
    assert torch.allclose(augment_each(x, u, "none"), x, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16, 16), (28, 28, 28), (16, 20, 33)])
def test_the_convnet_of_volumes_has_the_sizes_that_it_says(shape):
    network = ConvNet(1, shape, 5, 8)
    parameters = network.parameters(Key(0))
    x = torch.rand(3, 1, *shape, generator=Key(1).generator())
    assert network.embed(parameters, x).shape == (3, network.embedding_size)
    assert network.logits(parameters, x).shape == (3, 5)
    assert sum(p.numel() for p in parameters.values()) == network.parameter_count


def test_the_convnet_of_volumes_does_not_mix_images():
    network = ConvNet(1, (16, 16, 16), 3, 8)
    parameters, x = network.parameters(Key(0)), torch.rand(4, 1, 16, 16, 16, generator=Key(1).generator())
    together = network.logits(parameters, x)
    assert torch.allclose(torch.cat([network.logits(parameters, one[None]) for one in x]), together, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet", *BUILDERS])
def test_every_network_trains_on_volumes(name):
    network = make_network(name, 1, (16, 16, 16), 3, 8)
    parameters = network.parameters(Key(0))
    x = torch.rand(2, 1, 16, 16, 16, generator=Key(1).generator())
    learned = {n: p.requires_grad_(True) for n, p in parameters.items() if n not in network.buffers}
    loss = network.logits(parameters, x, training=True).square().sum()
    gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    assert network.logits(parameters, x).shape == (2, 3)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_a_preview_shows_the_middle_slice_along_each_axis():
    volume = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(1, 4, 6, 8)
    shown = preview(volume)
    assert shown.shape == (1, 6, 8 + 8 + 6)
    assert np.array_equal(shown[0, :6, :8], volume[0, 2])
    assert np.array_equal(shown[0, :4, 8:16], volume[0, :, 3])
    assert np.array_equal(shown[0, :4, 16:], volume[0, :, :, 4])


def test_the_stored_number_grows_with_the_cube_of_the_factor():
    from medistill.distil.problem import make_problem

    prepared = prepare(load("phantom:classes=2,images=60,size=16,depth=16"))
    problem = make_problem(prepared, 2, None, 2)
    assert problem.synthetic_per_stratum == (16, 16) and problem.stored_shape == (8, 8, 8)


def test_pictures_and_volumes_cannot_be_used_together():
    volumes = prepare(load("phantom:classes=2,images=24,size=16,depth=16"))
    with pytest.raises(ConfigError, match="pictures and volumes"):
        volumes.preprocessing.apply(load("phantom:classes=2,images=24,size=16").train.images)
