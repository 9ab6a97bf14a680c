"""Images stored at a part of the side, and labels that are probabilities."""

import io
import json
import shutil

import numpy as np
import pytest
import torch

import medistill
from medistill.config import EvaluateConfig, LabelConfig, Recipe
from medistill.data.preprocess import Part
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.errors import ConfigError, PackageError
from medistill.evaluation.arms import rebalanced
from medistill.evaluation.teachers import soft_labels
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.pixels import decode, encode
from medistill.nets.training import Statistics, train
from medistill.package.package import package_files, read_package
from medistill.testing import small_problem

SOURCE = "phantom:classes=3,images=36,size=16"
QUICK = Recipe(least_steps=5, width=8, steps_per_doubling=0)
SETTINGS = {
    "method": {"name": "dm", "iterations": 3, "networks": 2, "filters": 8, "real_batch": 8},
    "labels": {"teachers": 2, "recipe": QUICK.model_dump()},
}
TINY = EvaluateConfig(recipe=QUICK, networks=1, random_draws=2, bootstrap=100)


def test_decoding_an_encoded_constant_gives_it_back():
    images = torch.full((2, 3, 15, 22), 0.7)
    assert torch.allclose(decode(encode(images, (7, 11)), (15, 22)), images)


def test_encoding_halves_by_the_mean_of_four():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(encode(images, (2, 2)).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))


def test_without_a_factor_nothing_changes():
    images = torch.zeros(1, 1, 16, 16)
    assert decode(images, (16, 16)) is images and encode(images, (16, 16)) is images


def test_factor_spends_the_same_pixels_on_more_images():
    plain, smaller = small_problem(2), small_problem(2, factor=2)
    assert smaller.counts == tuple(4 * n for n in plain.counts)
    assert np.prod(smaller.stored) * sum(smaller.counts) == np.prod(plain.stored) * sum(plain.counts)


def test_too_small_a_side_is_refused():
    with pytest.raises(ConfigError, match="--factor.*1 to 2"):
        small_problem(2, factor=3)


def test_gradient_of_stored_images_goes_through_the_decoding():
    """One step of the loop equals the chain rule written out: the decoding's transpose of the gradient."""
    problem = small_problem(1, factor=2)
    method = make_method({**SETTINGS["method"], "iterations": 1, "learning_rate": 0.01, "momentum": 0.0})
    state = loop.start(method, problem, Key(0))
    before = state.images.clone()
    seen = problem.decode(before).requires_grad_(True)
    state.images, stored = seen, state.images
    loss = method.loss(state, problem, range(3), Key(0))
    (gradient,) = torch.autograd.grad(loss, seen)
    state.images = stored
    matrix = torch.stack([decode(e.view(1, 1, 8, 8), (16, 16)).flatten() for e in torch.eye(64)])  # (64, 256)
    expected = (gradient.view(-1, 256) @ matrix.T).view_as(before)
    loop.run(method, problem, Key(0), state)
    low, high = problem.bounds
    assert torch.allclose(state.images, (before - 0.01 * expected).clamp(low, high), atol=1e-5)


def test_soft_labels_of_one_class_train_like_hard_ones():
    draw = np.random.default_rng(0)
    labels = np.arange(12) % 3
    part = Part(draw.integers(0, 256, (12, 1, 16, 16)).astype(np.uint8), labels)
    soft = Part(part.pixels, labels, np.eye(3, dtype=np.float32)[labels])
    recipe = QUICK.model_copy(update={"label_smoothing": 0.0})
    network, statistics = ConvNet(1, 16, 16, 3, 8), Statistics((0.5,), (0.25,), "none")
    hard = train(network, part, statistics, recipe, Key(0))
    ours = train(network, soft, statistics, recipe, Key(0))
    assert all(torch.allclose(hard[k], ours[k], atol=1e-5) for k in hard)


def test_teachers_answer_the_same_when_they_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    draw = np.random.default_rng(0)
    part = Part(draw.integers(0, 256, (12, 1, 16, 16)).astype(np.uint8), np.arange(12) % 3)
    other = Part(part.pixels[:5], part.labels[:5])
    statistics, config = Statistics((0.5,), (0.25,), "none"), LabelConfig(teachers=2, recipe=QUICK)
    first, second = (soft_labels(part, [other, part], statistics, 3, config, 0) for _ in range(2))
    assert [a.shape for a in first] == [(5, 3), (12, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(list((tmp_path / "networks").iterdir())) == 4  # two teachers, and a student of each set
    assert np.allclose(first[1].sum(1), 1, atol=2e-3)
    warm = soft_labels(part, [part], statistics, 3, config.model_copy(update={"temperature": 4.0}), 0)[0]
    assert warm.max(1).mean() < first[1].max(1).mean()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "p"
    medistill.distill(SOURCE, out=out, ipc=2, factor=2, settings=SETTINGS)
    return out


def test_package_of_smaller_images_with_soft_labels(package, tmp_path):
    read = read_package(package)
    assert read.pixels.shape == (24, 1, 8, 8) and read.part.pixels.shape == (24, 1, 16, 16)
    assert read.part.soft_labels.shape == (24, 3) and np.allclose(read.part.soft_labels.sum(1), 1, atol=1e-6)
    assert read.manifest["images"] | {"folders": 0} == {
        "count": 24, "per_class": [8, 8, 8], "folders": 0, "stored_size": [8, 8], "labels": "soft"
    }  # fmt: skip
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


def test_evaluation_stands_beside_random_images_stored_alike(package, tmp_path):
    shutil.copytree(package, tmp_path / "p")
    before = (package / "distilled.npz").read_bytes()
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY, attach=True)
    assert result["images"]["random"] == 6 and result["images"]["random_stored_alike"] == 24
    assert result["compression"]["images"] == 6 / 36 and result["compression"]["stored_images"] == 24 / 36
    assert set(result["gain_over_random_stored_alike"]) == set(result["gain_over_random"])
    assert (tmp_path / "p" / "distilled.npz").read_bytes() == before
    card = (tmp_path / "p" / "README.md").read_text()
    assert "random real images, stored alike" in card and "random real images, same bytes" in card


def test_a_recipient_trains_on_it(package):
    result = medistill.train(package, on=SOURCE, config=TINY)
    assert result["test_images"] and result["metrics"]["accuracy"]["mean"] is not None


def test_plain_packages_have_no_such_arm(tmp_path):
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, method="random")
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY)
    assert "random_stored_alike" not in result["arms"] and result["gain_over_random_stored_alike"] is None


@pytest.mark.parametrize("factor", [1, 2])
def test_learned_labels_are_the_method_s_own_work(tmp_path, factor):
    """Random images beside them keep their classes; stored at full size they are the plain random arm."""
    settings = {"method": {"iterations": 2, "networks": 1, "filters": 8, "real_batch": 8}}
    medistill.distill(SOURCE, out=tmp_path / "p", method="frepo", ipc=2, factor=factor, settings=settings)
    assert read_package(tmp_path / "p").soft_labels is not None
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY)
    assert ("random_stored_alike" in result["arms"]) == (factor > 1)


@pytest.mark.parametrize("spoil", [lambda a: a * 2, lambda a: -a, lambda a: a * np.nan])
def test_soft_labels_that_are_no_probabilities_are_refused(package, tmp_path, spoil):
    shutil.copytree(package, tmp_path / "p")
    read = read_package(package)
    with np.load(io.BytesIO((package / "distilled.npz").read_bytes())) as arrays:
        own = dict(arrays)
    own["train_soft_labels"] = spoil(own["train_soft_labels"]).astype(np.float16)
    stream = io.BytesIO()
    np.savez_compressed(stream, **own)
    files = package_files(read)
    _forge(tmp_path / "p", files, stream.getvalue())
    with pytest.raises(PackageError, match="probabilities"):
        read_package(tmp_path / "p")


def _forge(path, files, npz):
    """Write another npz with a manifest that vouches for it."""
    import hashlib

    from medistill.files import canonical_json, pretty_json, sha256_text

    manifest = json.loads(files["manifest.json"])
    manifest.pop("package_id")
    manifest["files"]["distilled.npz"] = hashlib.sha256(npz).hexdigest()
    manifest["package_id"] = sha256_text(canonical_json(manifest))
    (path / "distilled.npz").write_bytes(npz)
    (path / "manifest.json").write_bytes(pretty_json(manifest).encode())


def test_teachers_see_every_class_equally_often():
    labels = np.repeat([0, 1, 3], [9, 3, 1])
    part = Part(np.full((13, 1, 16, 16), np.arange(13).reshape(13, 1, 1, 1), dtype=np.uint8), labels)
    seen = rebalanced(part, Key(0))
    assert np.bincount(seen.labels).tolist() == [5, 5, 0, 5]
    rows = seen.pixels[seen.labels == 0]
    assert len({row.tobytes() for row in rows}) == 5  # none twice while there are others
    assert len({row.tobytes() for row in seen.pixels[seen.labels == 1]}) == 3
