"""Data as a study sees them: varied in training only, named, and the same when the run begins."""

import numpy as np
import pytest

import medistill
from conftest import npz_arrays
from medistill.data.align import renamed
from medistill.data.phantom import Phantom, make_phantom
from medistill.errors import DataError
from medistill.study import work
from medistill.study.config import DataEntry, StudyConfig, read_study
from medistill.study.plan import plan
from medistill.study.variation import as_source, read_entry
from studies import SMALL, STUDY, write


def test_variations_touch_training_images_only(tmp_path):
    plain = read_entry(DataEntry(source=SMALL, name="a"))
    half = read_entry(DataEntry(source=SMALL, name="a", images=0.5))
    assert half.counts("train") == [n // 2 for n in plain.counts("train")]
    assert np.array_equal(half.splits["test"].images, plain.splits["test"].images)
    noisy = read_entry(DataEntry(source=SMALL, name="a", label_noise=0.25))
    changed = (noisy.train.targets != plain.train.targets).any(axis=1)
    assert changed.sum() == round(0.25 * len(plain.train)) and (noisy.train.targets.sum(axis=1) == 1).all()
    assert np.array_equal(noisy.splits["test"].targets, plain.splits["test"].targets)
    merged = DataEntry(source=SMALL, name="a", classes={"ring lesion": "solid nodule"})
    assert read_entry(merged).description.class_names == ("no lesion", "solid nodule")
    source, config = as_source(merged, read_entry(merged))
    again = medistill.load(source, config)
    assert again.fingerprint["sha256"] == read_entry(merged).fingerprint["sha256"]
    assert again.description.class_names == ("no lesion", "solid nodule") and again.description.flips == "both"


def test_findings_of_wrong_labels_are_turned_into_their_opposite():
    source = SMALL + ",task=findings"
    plain = read_entry(DataEntry(source=source, name="a"))
    noisy = read_entry(DataEntry(source=source, name="a", label_noise=0.25))
    turned = (noisy.train.targets == 1 - plain.train.targets).all(axis=1)
    same = (noisy.train.targets == plain.train.targets).all(axis=1)
    assert turned.sum() == round(0.25 * len(plain.train)) and (turned | same).all()
    assert np.array_equal(noisy.splits["test"].targets, plain.splits["test"].targets)
    again = medistill.load(*as_source(DataEntry(source=source, name="a", label_noise=0.25), noisy))
    assert again.fingerprint["sha256"] == noisy.fingerprint["sha256"] and again.task == noisy.task


def test_classes_are_renamed_merged_and_left_out(tiny):
    found = renamed(tiny, {"no lesion": None, "solid nodule": "mass"})
    assert found.description.class_names == ("mass", "ring lesion")
    assert found.counts("train") == tiny.counts("train")[1:]
    with pytest.raises(DataError, match="has no class 'nodule'.*solid nodule"):
        renamed(tiny, {"nodule": "mass"})


def test_data_changed_after_planning_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16))))
    (run,) = plan(read_study(write(tmp_path, data=[str(path)], methods=["random"], ipc=[1])))
    np.savez(path, **npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16, seed=1))))
    with pytest.raises(DataError, match="changed since the study was planned"):
        work.perform(run.specification)


def test_class_names_are_part_of_varied_data():
    first, second = (
        DataEntry(source=SMALL, name="a", classes={"solid nodule": a, "ring lesion": b}) for a, b in ("xy", "yx")
    )
    assert as_source(first, read_entry(first))[0] != as_source(second, read_entry(second))[0]
    assert medistill.load(*as_source(second, read_entry(second))).description.class_names == ("no lesion", "y", "x")


def test_features_see_the_flips_that_the_package_has(tmp_path):
    from medistill.commands.evaluate import measure

    entry = DataEntry(source=SMALL, name="a", images=0.5, data={"flips": "horizontal"})
    source, config = as_source(entry, read_entry(entry))
    settings = {"data": config.model_dump(mode="json")}
    medistill.distill(source, out=tmp_path / "p", method="random", ipc=1, settings=settings)
    evaluate = StudyConfig.model_validate(STUDY).evaluate
    measured = measure(tmp_path / "p", source, evaluate, False, False)
    assert measured.prepared.dataset.description.flips == "horizontal" == measured.package.manifest.image.flips


def test_wrong_labels_are_told_before_anything_is_varied(tmp_path):
    arrays = npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16)))
    arrays["test_labels"] = arrays["test_labels"] + 5
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match="test_labels"):
        read_entry(DataEntry(source=str(tmp_path / "x.npz"), name="x", images=0.5))


def test_versions_of_one_source_share_an_origin(tmp_path):
    data = [{"source": SMALL, "name": "a"}, {"source": SMALL, "name": "half", "images": 0.5}]
    first, second = read_study(write(tmp_path, data=data)).data
    assert first.group == second.group


def test_origins_are_told_from_sources(tmp_path):
    arrays = npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16)))
    sources = []
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "data.npz", **arrays)
        sources.append({"source": f"{folder}/data.npz", "name": folder})
    for name in ("bloodmnist", "bloodmnist_64"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        sources.append({"source": f"{name}.npz"})
    sources += [{"source": SMALL, "name": "p"}, {"source": SMALL + ",site=b", "name": "q"}]
    groups = [entry.group for entry in read_study(write(tmp_path, data=sources), tmp_path).data]
    assert groups[0] != groups[1], "two hospitals that call their file alike"
    assert groups[2:] == ["bloodmnist", "bloodmnist", "phantom", "phantom"]
