"""Reading: npz, class folders, MedMNIST names, phantoms, and the splits that are made."""

import numpy as np
import pytest
from PIL import Image

from conftest import class_folders, npz_arrays
from medistill.config import DataConfig
from medistill.data.checks import require_usable
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import SITES, Phantom, parse_phantom
from medistill.data.readers import medmnist
from medistill.data.split import complete
from medistill.errors import ConfigError, DataError
from medistill.keys import Key
from medistill.tasks.task import make_task


@pytest.mark.parametrize("shape", [(28, 28), (20, 33), (28, 28, 3)])
def test_npz_of_any_size_gray_or_rgb(tmp_path, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, *shape), dtype=np.uint8)
    labels = np.arange(12).reshape(-1, 1) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    dataset = load(tmp_path / "x.npz")
    test = dataset.splits["test"].images
    assert test.shape == (12, 3 if len(shape) == 3 else 1, *shape[:2])
    assert np.array_equal(np.moveaxis(test, 1, -1).reshape(images.shape), images)
    assert "val" in dataset.splits and "stratified" in dataset.description.notes[-1]


def test_npz_with_names_and_patients(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    labels = np.arange(40) % 2
    patients = np.array([f"p{i // 4}" for i in range(40)])
    np.savez(
        tmp_path / "x.npz", train_images=images, train_labels=labels, train_patients=patients,
        class_names=np.array(["well", "ill"]),
    )  # fmt: skip
    dataset = load(tmp_path / "x.npz")
    assert dataset.description.class_names == ("well", "ill")
    groups = [set(dataset.splits[s].patients) for s in ("train", "val", "test")]
    assert all(groups) and not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert sum("by patient" in note for note in dataset.description.notes) == 2


@pytest.mark.parametrize("by_patient", [False, True])
def test_splitting_off_keeps_every_class_and_every_image(by_patient):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), [60, 30, 9, 1])
    images = rng.integers(0, 256, (100, 1, 16, 16), dtype=np.uint8)
    patients = np.array([f"{i // 3}" for i in range(100)]) if by_patient else None
    task = make_task("multi-class", "abcd")
    dataset = Dataset({"train": Split(images, task.targets(labels), patients)}, Description("x", task))
    made = complete(dataset, Key(0))
    again = complete(dataset, Key(0))
    assert sum(len(s) for s in made.splits.values()) == 100
    assert min(made.counts("train")) > 0
    assert all(np.array_equal(made.splits[s].images, again.splits[s].images) for s in made.splits)
    assert 0.05 < len(made.splits["test"]) / 100 < 0.3


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [("L", "png", 1), ("RGB", "jpg", 3), ("L", "tiff", 1), ("RGB", "bmp", 3), ("P", "png", 3)],
)
def test_class_folders(tmp_path, mode, suffix, channels):
    class_folders(tmp_path, mode=mode, suffix=suffix)
    dataset = load(tmp_path)
    assert dataset.description.class_names == ("cat", "dog")
    assert dataset.splits["test"].images.shape == (12, channels, 16, 18)


def test_class_folders_without_splits(tmp_path):
    class_folders(tmp_path, splits=("",))
    assert set(load(tmp_path).splits) == {"train", "val", "test"}


def test_sixteen_bit_images_keep_their_depth(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            array = np.full((16, 16), 1000 * i + 300, dtype=np.uint16)
            Image.fromarray(array).save(tmp_path / label / f"{i}.{'png' if label == 'a' else 'tif'}")
    dataset = load(tmp_path)
    assert dataset.train.images.dtype == np.uint16
    assert max(part.images.max() for part in dataset.splits.values()) == 3300


def test_mixed_sizes_are_refused_and_size_is_the_remedy(tmp_path):
    class_folders(tmp_path)
    Image.new("L", (40, 20)).save(tmp_path / "train" / "cat" / "odd.png")
    with pytest.raises(DataError, match=r"mixed sizes \(16x18: 24 files, 20x40: 1 files\).*--size"):
        load(tmp_path)
    assert load(tmp_path, DataConfig(size=24)).train.images.shape[1:] == (1, 24, 24)


def test_patients_csv(tmp_path):
    class_folders(tmp_path, splits=("",))
    rows = [f"{p.relative_to(tmp_path).as_posix()},p{i // 2}" for i, p in enumerate(sorted(tmp_path.rglob("*.png")))]
    (tmp_path / "patients.csv").write_text("file,patient\n" + "\n".join(rows))
    assert "by patient" in load(tmp_path).description.notes[0]


def test_catalogue_has_twelve_sets_of_pictures_and_six_of_volumes():
    sets = medmnist.catalogue()["sets"]
    volumes = {name for name in sets if name.endswith("3d")}
    assert len(sets) == 18 and len(volumes) == 6
    for name, entry in sets.items():
        assert set(entry["md5"]) == ({"28", "64"} if name in volumes else {"28", "64", "128", "224"})
        assert entry["licence"] and entry["source"]
        assert medmnist.describe(name).class_names == tuple(entry["classes"])
    assert len({m for s in sets.values() for m in s["md5"].values()}) == 60
    assert all(sets[name]["flips"] == "none" for name in sets if name.startswith("organ"))
    kinds = {name: entry["task"] for name, entry in sets.items()}
    assert kinds["chestmnist"] == "multi-label" and kinds["retinamnist"] == "ordinal"
    assert not {"multi-label", "ordinal"} & {kinds[name] for name in set(sets) - {"chestmnist", "retinamnist"}}


def test_name_refuses_other_content_but_path_takes_it(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv(medmnist.ROOT_VARIABLE, str(tmp_path))
    np.savez(tmp_path / "breastmnist.npz", **npz_arrays(tiny))
    with pytest.raises(DataError, match="MD5 .* is not the official file's.*path instead of the name"):
        load("breastmnist")
    assert load(tmp_path / "breastmnist.npz").task.outputs == 3


def test_absent_set_offline_names_file_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv(medmnist.ROOT_VARIABLE, str(tmp_path))

    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", refuse)
    with pytest.raises(DataError) as problem:
        load("pathmnist_64")
    assert str(tmp_path / "pathmnist_64.npz") in str(problem.value)
    assert "put it at" in str(problem.value)


def test_unknown_names_get_the_nearest():
    with pytest.raises(DataError, match="did you mean 'bloodmnist'"):
        load("blodmnist")
    with pytest.raises(DataError, match="28, 64, 128, 224"):
        load("bloodmnist_99")


@pytest.mark.parametrize(
    "text", ["phantom", "phantom:classes=8,colour=true,site=b", "phantom:size=20,width=31,imbalance=5"]
)
def test_phantom_is_the_same_again(text):
    first, second = load(text), load(text)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != load(text + ("," if ":" in text else ":") + "seed=1").fingerprint


def test_phantom_keeps_what_was_asked():
    spec = Phantom(classes=5, images=100, size=18, width=26, colour=True, imbalance=4)
    dataset = make_phantom(spec)
    assert dataset.train.images.shape[1:] == (3, 18, 26)
    counts = dataset.counts("train")
    assert len(counts) == 5 and 3 < counts[0] / counts[-1] < 5
    assert not set(dataset.train.patients) & set(dataset.splits["test"].patients)
    assert len(set(dataset.train.patients)) < len(dataset.train)


def test_sites_differ_as_scanners_do():
    means = {site: make_phantom(Phantom(images=80, site=site)).train.images.mean() for site in SITES}
    noise = {
        site: np.diff(make_phantom(Phantom(images=80, site=site)).train.images.astype(float), axis=3).std()
        for site in SITES
    }
    assert noise["c"] > noise["a"] > noise["b"]
    assert len({round(m) for m in means.values()}) == 3


@pytest.mark.parametrize(
    "text", ["phantom:clases=3", "phantom:classes=9", "phantom:classes=x", "phantom:site=q", "phantom:3"]
)
def test_phantom_refuses(text):
    with pytest.raises(ConfigError):
        parse_phantom(text)


def test_real_files_read(real):
    for name, shape, classes in (
        ("pneumoniamnist.npz", (4708, 1, 28, 28), 2),
        ("bloodcells_28.npz", (11967, 3, 28, 28), 8),
        ("breastmnist_64.npz", (546, 1, 64, 64), 2),
    ):
        dataset = load(real(name))
        assert dataset.train.images.shape == shape and dataset.task.outputs == classes


def test_real_second_site_without_validation_gets_one(real):
    dataset = load(real("whitecells_28.npz"))
    assert "val" in dataset.splits and len(dataset.splits["test"]) == 149
    assert dataset.counts("train")[4] == 1  # the only basophil stays in training


def test_training_and_testing_are_splits(tmp_path):
    class_folders(tmp_path, splits=("Training", "Testing"))
    dataset = load(tmp_path)
    assert dataset.description.class_names == ("cat", "dog") and len(dataset.splits["test"]) == 12


def test_files_that_are_left_out_are_told(tmp_path):
    class_folders(tmp_path, splits=("",))
    for name in ("scan.mha", "second.mha", "Thumbs.db", ".DS_Store", "notes"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (note, *_) = load(tmp_path).description.notes
    assert note.startswith("3 files in class folders were left out (.mha, others)")


def test_what_nobody_sees_in_a_folder_is_not_read(tmp_path):
    class_folders(tmp_path, splits=("",))
    before = load(tmp_path).fingerprint
    (tmp_path / "cat" / "._0.png").write_bytes(b"no image")
    (tmp_path / "__MACOSX").mkdir()
    hidden = tmp_path / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    image = next((tmp_path / "cat").glob("[0-9a-z]*.png"))
    (hidden / image.name).write_bytes(image.read_bytes())
    dataset = load(tmp_path)
    assert dataset.fingerprint == before and dataset.description.class_names == ("cat", "dog")


def test_unprintable_class_names_are_blocking(tmp_path, tiny):
    for name in ("\ud800", "a\nb"):
        np.savez(tmp_path / "x.npz", **npz_arrays(tiny), class_names=np.array([name, "b", "c"][: tiny.task.outputs]))
        with pytest.raises(DataError, match="unprintable"):
            require_usable(load(tmp_path / "x.npz"))


def test_other_files_are_told_what_is_read(tmp_path):
    for name in ("labels.txt", "scan.dcm"):
        (tmp_path / name).write_text("x")
        with pytest.raises(
            DataError, match=r"is no kind of file that is read; allowed: .*an \.npz in MedMNIST layout"
        ):
            load(tmp_path / name)


def test_one_hot_labels_are_told_from_several_findings(tmp_path, tiny):
    arrays = npz_arrays(tiny)
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.eye(tiny.task.outputs, dtype=np.uint8)[arrays[f"{split}_labels"][:, 0]]
    np.savez(tmp_path / "x.npz", **arrays)
    found = load(tmp_path / "x.npz")
    assert found.task.kind == "multi-label"
    told = {issue.kind: issue for issue in require_usable(found)}
    assert "--task multi-class" in told["one finding each"].remedy
    asked = load(tmp_path / "x.npz", DataConfig(task="multi-class"))
    assert asked.task.kind == "multi-class" and "one finding each" not in {i.kind for i in require_usable(asked)}
    assert all(np.array_equal(asked.splits[s].targets, tiny.splits[s].targets) for s in tiny.splits)


def test_several_findings_are_no_classes(tmp_path, tiny):
    arrays = npz_arrays(tiny)
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.eye(3, dtype=np.uint8)[arrays[f"{split}_labels"][:, 0]]
        arrays[f"{split}_labels"][:2] = [[1, 1, 0], [0, 0, 0]]
    np.savez(tmp_path / "x.npz", **arrays)
    found = load(tmp_path / "x.npz")
    assert found.task.kind == "multi-label" and "one finding each" not in {i.kind for i in require_usable(found)}
    assert np.array_equal(found.train.targets, arrays["train_labels"])
    with pytest.raises(DataError, match=r"the labels are no multi-class task.*train_labels.*2 of 3 ones"):
        load(tmp_path / "x.npz", DataConfig(task="multi-class"))


def test_the_kind_of_task_can_stand_in_the_file(tmp_path, tiny):
    np.savez(tmp_path / "x.npz", **npz_arrays(tiny), task=np.array("ordinal"))
    found = load(tmp_path / "x.npz")
    assert found.task.kind == "ordinal" and np.array_equal(found.train.targets, tiny.train.targets)
    np.savez(tmp_path / "x.npz", **npz_arrays(tiny), task=np.array("ordinary"))
    with pytest.raises(DataError, match=r"x\.npz, task.*did you mean 'ordinal'"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_a_single_finding_is_one_column(dtype, tmp_path):
    images, findings = np.zeros((12, 20, 20), np.uint8), (np.arange(12) % 3 == 0).astype(dtype)[:, None]
    entries = {"task": np.array("multi-label"), "class_names": np.array(["nodule"])}
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=findings, **entries)
    dataset = load(tmp_path / "x.npz", complete_splits=False)
    assert dataset.task.kind == "multi-label" and dataset.task.class_names == ("nodule",)
    assert dataset.train.targets.tolist() == findings.astype(int).tolist()


@pytest.mark.parametrize("shape", [(16, 18, 20), (16, 18, 20, 1), (16, 18, 20, 3)])
def test_npz_of_volumes(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(12) % 2)
    found = load(tmp_path / "x.npz", complete_splits=False).train.images
    assert found.shape == (12, 3 if shape[3:] == (3,) else 1, 16, 18, 20)
    assert np.array_equal(np.moveaxis(found, 1, -1).reshape(images.shape), images)


def test_channels_first_are_told_from_volumes(tmp_path):
    images = np.zeros((12, 3, 20, 24), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.arange(12) % 2)
    with pytest.raises(DataError, match="numpy.moveaxis"):
        load(tmp_path / "x.npz")


def test_few_test_images_are_told(tiny):
    found = {p.kind: p.found for p in require_usable(tiny)}
    assert found["few test images"] == f"test: {len(tiny.splits['test'])} images"
