"""Images stored at a part of the side, and labels that are probabilities."""

import io
import shutil

import numpy as np
import pytest
import torch

import medistill
from forging import sealed
from medistill.config import EvaluateConfig, LabelConfig, Recipe
from medistill.data.image import Normalisation, decode, encode
from medistill.data.preprocess import TensorSplit
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.optimiser import Optimiser
from medistill.errors import ConfigError, PackageError
from medistill.evaluation.arms import rebalanced
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import train_network
from medistill.package.container import read_files, write_files
from medistill.package.package import package_files, read_package
from medistill.tasks.task import numbered
from medistill.testing import small_problem

SOURCE = "phantom:classes=3,images=36,size=16"
QUICK = Recipe(min_steps=5, width=8, steps_per_doubling=0)
SETTINGS = {
    "method": {"name": "dm", "iterations": 3, "networks": 2, "filters": 8, "real_batch": 8},
    "labels": {"teachers": 2, "recipe": QUICK.model_dump()},
}
TINY = EvaluateConfig(recipe=QUICK, repeats=1, random_draws=2, bootstrap=100)
THREE = numbered("multi-class", 3)


@pytest.mark.parametrize(("shape", "stored"), [((15, 22), (7, 11)), ((15, 22, 17), (7, 11, 8))])
def test_decoding_an_encoded_constant_gives_it_back(shape, stored):
    images = torch.full((2, 3, *shape), 0.7)
    assert torch.allclose(decode(encode(images, stored), shape), images)


def test_encoding_halves_by_the_mean_of_four():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(encode(images, (2, 2)).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))
    volumes = torch.arange(64.0).view(1, 1, 4, 4, 4)
    wanted = [10.5, 12.5, 18.5, 20.5, 42.5, 44.5, 50.5, 52.5]
    assert torch.equal(encode(volumes, (2, 2, 2)).flatten(), torch.tensor(wanted))


def test_without_a_factor_nothing_changes():
    images = torch.zeros(1, 1, 16, 16)
    assert decode(images, (16, 16)) is images and encode(images, (16, 16)) is images


def test_factor_spends_the_same_pixels_on_more_images():
    for phantom, each in (({}, 4), ({"depth": 16, "images": 48}, 8)):
        plain, smaller = small_problem(2, **phantom), small_problem(2, factor=2, **phantom)
        assert smaller.synthetic_per_stratum == tuple(each * n for n in plain.synthetic_per_stratum)
        spent = [np.prod(p.stored_shape) * sum(p.synthetic_per_stratum) for p in (plain, smaller)]
        assert spent[0] == spent[1]


def test_too_small_a_side_is_refused():
    with pytest.raises(ConfigError, match="--factor.*1 to 2"):
        small_problem(2, factor=3)


def test_gradient_of_stored_images_goes_through_the_decoding():
    """One step of the loop equals the chain rule written out: the decoding's transpose of the gradient."""
    problem = small_problem(1, factor=2)
    method, optimiser = make_method({**SETTINGS["method"], "iterations": 1}), Optimiser("sgd", 0.01, 0.0)
    view = loop.start(method, problem, Key(0), optimiser)
    before = view.images.clone()
    view.images = problem.decode(before)
    observed = method.observe(view, problem, range(3), Key(0))
    view.images.requires_grad_(True)
    loss = method.loss(view, observed, problem, range(3), Key(0))
    (gradient,) = torch.autograd.grad(loss, view.images)
    matrix = torch.stack([decode(e.view(1, 1, 8, 8), (16, 16)).flatten() for e in torch.eye(64)])  # (64, 256)
    expected = (gradient.view(-1, 256) @ matrix.T).view_as(before)
    state = loop.run(method, problem, Key(0), loop.start(method, problem, Key(0), optimiser), optimiser=optimiser)
    low, high = problem.bounds
    assert torch.allclose(state.images, (before - 0.01 * expected).clamp(low, high), atol=1e-5)


def test_soft_labels_of_one_class_train_like_hard_ones():
    draw = np.random.default_rng(0)
    targets = THREE.targets(np.arange(12) % 3)
    data = TensorSplit(draw.integers(0, 256, (12, 1, 16, 16)).astype(np.uint8), targets)
    soft = data.with_soft_labels(targets.astype(np.float32))
    recipe = QUICK.model_copy(update={"label_smoothing": 0.0})
    network, normalisation = ConvNet(1, (16, 16), 3, 8), Normalisation((0.5,), (0.25,), "none")
    hard = train_network(network, data, THREE, normalisation, recipe, Key(0))
    ours = train_network(network, soft, THREE, normalisation, recipe, Key(0))
    assert all(torch.allclose(hard[k], ours[k], atol=1e-5) for k in hard)


def test_teachers_answer_the_same_when_they_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    draw = np.random.default_rng(0)
    data = TensorSplit(draw.integers(0, 256, (12, 1, 16, 16)).astype(np.uint8), THREE.targets(np.arange(12) % 3))
    other = TensorSplit(data.pixels[:5], data.targets[:5])
    normalisation, config = Normalisation((0.5,), (0.25,), "none"), LabelConfig(teachers=2, recipe=QUICK)
    first, second = (soft_labels(data, [other, data], THREE, normalisation, config, 0) for _ in range(2))
    assert [a.shape for a in first] == [(5, 3), (12, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(list((tmp_path / "networks").iterdir())) == 4  # two teachers, and a student of each set
    assert np.allclose(first[1].sum(1), 1, atol=2e-3)
    softer = config.model_copy(update={"temperature": 4.0})
    warm = soft_labels(data, [data], THREE, normalisation, softer, 0)[0]
    assert warm.max(1).mean() < first[1].max(1).mean()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "p"
    medistill.distill(SOURCE, out=out, ipc=2, factor=2, settings=SETTINGS)
    return out


def test_package_of_smaller_images_with_soft_labels(package, tmp_path):
    read = read_package(package)
    assert read.pixels.shape == (24, 1, 8, 8) and read.data.pixels.shape == (24, 1, 16, 16)
    assert read.data.soft_labels.shape == (24, 3) and np.allclose(read.data.soft_labels.sum(1), 1, atol=1e-6)
    assert read.manifest.images.model_dump() | {"folders": 0} == {
        "count": 24, "per_stratum": [8, 8, 8], "folders": 0, "labels": "soft"
    }  # fmt: skip
    assert read.manifest.image.shape == [16, 16] and read.manifest.image.stored_shape == [8, 8]
    medistill.distill(SOURCE, out=tmp_path / "q", ipc=2, factor=2, settings=SETTINGS)
    assert package_files(read_package(tmp_path / "q")) == package_files(read)
    card = (package / "README.md").read_text()
    assert "enlarged to 16×16" in card and 'data["train_soft_labels"]' in card


def test_the_ten_lines_on_its_card_run(package, monkeypatch):
    code = (package / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(package)
    scope: dict = {}
    exec(code.replace("range(300)", "range(60)"), scope)
    torch = scope["torch"]
    found = scope["model"](scope["x"]).softmax(1).detach()
    assert scope["x"].shape[2:] == (16, 16)
    assert float((found - scope["y"]).abs().mean()) < float((scope["y"].mean(0) - scope["y"]).abs().mean()) or (
        torch.equal(found.argmax(1), scope["y"].argmax(1))
    )


def test_evaluation_stands_beside_random_images_with_the_same_storage_and_labels(package, tmp_path):
    shutil.copytree(package, tmp_path / "p")
    before = (package / "distilled.npz").read_bytes()
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY, attach=True)
    assert result["images"]["random"] == 6 and result["images"]["random_matched"] == 24
    assert result["compression"]["images"] == 6 / 36 and result["compression"]["stored_images"] == 24 / 36
    assert set(result["gain_over_random_matched"]) == set(result["gain_over_random"])
    assert (tmp_path / "p" / "distilled.npz").read_bytes() == before
    card = (tmp_path / "p" / "README.md").read_text()
    assert "random real images, same storage and soft labels" in card and "random real images, same bytes" in card


def test_a_recipient_trains_on_it(package):
    result = medistill.train(package, on=SOURCE, config=TINY)
    assert result["test_images"] and result["metrics"]["accuracy"]["mean"] is not None


def test_plain_packages_have_no_such_arm(tmp_path):
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, method="random")
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY)
    assert "random_matched" not in result["arms"] and result["gain_over_random_matched"] is None


@pytest.mark.parametrize("factor", [1, 2])
def test_learned_labels_are_the_method_s_own_work(tmp_path, factor):
    """Random images beside them keep their classes; stored at full size they are the plain random arm."""
    settings = {"method": {"iterations": 2, "networks": 1, "filters": 8, "real_batch": 8}}
    medistill.distill(SOURCE, out=tmp_path / "p", method="frepo", ipc=2, factor=factor, settings=settings)
    assert read_package(tmp_path / "p").soft_labels is not None
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY)
    assert ("random_matched" in result["arms"]) == (factor > 1)


@pytest.mark.parametrize("spoil", [lambda a: a * 2, lambda a: -a, lambda a: a * np.nan])
def test_soft_labels_that_are_no_probabilities_are_refused(package, tmp_path, spoil):
    shutil.copytree(package, tmp_path / "p")
    files = read_files(package)
    with np.load(io.BytesIO(files["distilled.npz"])) as arrays:
        own = dict(arrays)
    own["train_soft_labels"] = spoil(own["train_soft_labels"]).astype(np.float16)
    stream = io.BytesIO()
    np.savez_compressed(stream, **own)
    write_files(tmp_path / "p", sealed({**files, "distilled.npz": stream.getvalue()}))
    with pytest.raises(PackageError, match="probabilities"):
        read_package(tmp_path / "p")


def test_teachers_see_every_class_equally_often():
    labels = np.repeat([0, 1, 3], [9, 3, 1])
    task = numbered("multi-class", 4)
    pixels = np.full((13, 1, 16, 16), np.arange(13).reshape(13, 1, 1, 1), dtype=np.uint8)
    seen = rebalanced(TensorSplit(pixels, task.targets(labels)), task, Key(0))
    found = task.labels(seen.targets)
    assert np.bincount(found).tolist() == [5, 5, 0, 5]
    assert (labels[seen.pixels[:, 0, 0, 0]] == found).all()
    assert len({row.tobytes() for row in seen.pixels[found == 0]}) == 5  # none twice while there are others
    assert len({row.tobytes() for row in seen.pixels[found == 1]}) == 3
