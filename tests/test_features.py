"""Features of a data set: they see no image that they must not see, are kept, and a study renews them alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

import medistill
from medistill.data.dataset import Dataset, Split
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import Part, prepare
from medistill.keys import Key
from medistill.prediction import features as features_module
from medistill.prediction.features import Wanted, features
from medistill.store import Store
from medistill.study import work
from studies import SMALL, in_this_process, write


def of_random(prepared, ipc):
    package = Wanted.of({"method": {"name": "random"}, "ipc": ipc})
    return features(prepared, {"random": package})["random"]


def test_features_come_from_training_images_alone(short, tmp_path, monkeypatch):
    dataset = make_phantom(Phantom(classes=3, images=60, size=16))
    first = of_random(prepare(dataset), 2)
    rng = np.random.default_rng(0)
    other = {
        name: split if name == "train" else Split(255 - split.images, rng.permutation(split.labels), split.patients)
        for name, split in dataset.splits.items()
    }
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "empty"))  # else what was found above is found again
    assert of_random(prepare(Dataset(other, dataset.description)), 2) == first
    assert all(math.isfinite(v) for v in first.values())
    assert first["classes"] == 3 and first["images"] == 6 and first["share"] == 0.1
    assert all(0 <= first[f"{kind}.auroc"] <= 1 for kind in ("random", "all", "chosen"))


def test_nobody_is_asked_about_patients_who_are_known():
    rng = np.random.default_rng(0)
    patients = np.array([f"p{n}" for n in rng.integers(0, 30, 200)])
    pixels = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    train = Part(pixels, rng.integers(0, 3, 200))
    held, rest = features_module._held_out(train, 3, Key(0), patients)
    of = dict(zip(pixels.ravel().tolist(), patients.tolist(), strict=True))
    asked, known = ({of[int(p)] for p in part.pixels.ravel()} for part in (held, rest))
    assert not asked & known and len(held) + len(rest) == 200
    assert all(n >= 1 for n in np.bincount(held.labels, minlength=3))
    assert (np.bincount(held.labels, minlength=3) <= np.bincount(train.labels) // 2).all()
    everyone, _ = features_module._held_out(train, 3, Key(0), None)
    assert len({of[int(p)] for p in everyone.pixels.ravel()}) > len(asked)


@pytest.mark.parametrize("method", ["random", "herding", "k-means"])
def test_a_coreset_is_looked_at_as_it_will_be(method, tmp_path):
    medistill.distill(SMALL, out=tmp_path / "p", method=method, ipc=2, seed=3)
    package = medistill.read_package(tmp_path / "p")
    wanted = Wanted.of({"method": {"name": method}, "ipc": 2, "seed": 3})
    chosen = features_module._chosen(prepare(medistill.load(SMALL)), wanted)
    assert np.array_equal(chosen.pixels, package.pixels) and np.array_equal(chosen.labels, package.labels)


def test_images_that_a_network_was_trained_on_are_not_asked_about():
    rng = np.random.default_rng(0)
    held = Part(rng.integers(0, 256, (6, 1, 16, 16), dtype=np.uint8), np.array([0, 0, 0, 1, 1, 1]))
    rows = features_module._unseen(held, Part(held.pixels[[1, 4]], held.labels[[1, 4]]))
    assert rows.tolist() == [True, False, True, True, False, True] and features_module._is_enough(held, rows)
    assert not features_module._is_enough(held, np.array([True, False, False, True, True, True]))


def test_only_few_images_of_a_coreset_are_looked_at(short, monkeypatch):
    """Of what is learned, stored smaller, labelled by teachers, or many, random images tell as much."""
    prepared = prepare(make_phantom(Phantom(classes=2, images=100, size=16)))
    own = {"method": {"name": "random"}, "ipc": 1}
    wanted = {
        "few": own, "another seed": {**own, "seed": 1}, "many": {**own, "ipc": 4}, "smaller": {**own, "factor": 2},
        "labelled": {**own, "labels": {"teachers": 1}}, "learned": {"method": {"name": "dm"}, "ipc": 1},
    }  # fmt: skip
    found = features(prepared, {name: Wanted.of(each) for name, each in wanted.items()})
    differ = {n for n, f in found.items() if f["chosen.auroc"] != f["random.auroc"]}
    assert differ == {"few", "another seed"} and len({found[n]["chosen.auroc"] for n in differ}) == 2
    assert all(f["all.auroc"] == found["few"]["all.auroc"] for f in found.values())
    monkeypatch.setattr(features_module, "MOST_IMAGES", 99)
    assert not features_module._is_looked_at(prepared, Wanted.of(own))


def test_features_are_kept(short, monkeypatch):
    prepared = prepare(make_phantom(Phantom(classes=2, images=40, size=16)))
    first = of_random(prepared, 1)
    monkeypatch.setattr(features_module, "run_all", lambda *_: pytest.fail("trained again"))
    assert of_random(prepared, 1) == first


@pytest.mark.parametrize("images", [4, 7, 30])
def test_features_of_few_images_and_a_class_of_one(short, images):
    """A class of one image is not asked about, and where a coreset is all images, so are those that it has seen."""
    prepared = prepare(make_phantom(Phantom(classes=2, images=images, size=16)))
    assert all(math.isfinite(v) for v in of_random(prepared, max(prepared.counts)).values())
    held, rest = features_module._held_out(
        Part(prepared.train.pixels[:3], np.array([0, 0, 1])), 2, features_module.Key(0)
    )
    assert 1 not in held.labels and len(held) + len(rest) == 3


def test_features_of_an_earlier_version_are_renewed_and_nothing_is_measured_again(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    file = write(tmp_path, data=[{"source": SMALL, "name": "a"}], features=True)
    medistill.study_run(file)
    with Store(tmp_path / "study.db", write=True) as store:
        before = store.runs()
        store.renew(before[0].identity, {"features": {"classes": 3.0}, "features_version": 0})
    monkeypatch.setattr("medistill.study.measure.distilled", lambda _run: pytest.fail("measured again"))
    result = medistill.study_run(file)
    assert (result["runs"], result["done"], result["ran"]) == (2, 2, 0)
    with Store(tmp_path / "study.db") as store:
        assert store.runs() == [replace(r, asked=a.asked) for r, a in zip(before, store.runs(), strict=True)]


def test_features_that_were_not_wanted_can_be_had_later(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    data = [{"source": SMALL, "name": "a"}]
    medistill.study_run(write(tmp_path, data=data, methods=["random"]))
    with Store(tmp_path / "study.db") as store:
        assert store.runs()[0].result["features"] is None
    assert medistill.study_run(write(tmp_path, data=data, methods=["random"], features=True))["ran"] == 0
    with Store(tmp_path / "study.db") as store:
        assert store.runs()[0].result["features"]["classes"] == 3


def test_what_a_cache_held_without_features_gets_them_at_once(tmp_path, monkeypatch):
    """A result from the cache may have been measured for a study that wanted none."""
    in_this_process(monkeypatch)
    whole = work.perform

    def without(specification):
        found = whole(specification)
        return found if specification["kind"] == "features" else {**found, "features": None, "features_version": None}

    monkeypatch.setattr(work, "perform", without)
    result = medistill.study_run(write(tmp_path, features=True))
    assert result["ran"] == result["runs"] == result["done"]
    with Store(tmp_path / "study.db") as store:
        assert all(run.result["features"] for run in store.runs())
