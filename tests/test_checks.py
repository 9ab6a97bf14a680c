from dataclasses import replace

import numpy as np
import pytest

from medistill.config import DataConfig
from medistill.data.checks import check, require_usable
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.duplicates import families
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.preprocess import prepare
from medistill.data.split import complete
from medistill.errors import DataError
from medistill.keys import Key
from medistill.tasks.task import make_task

TWO = make_task("binary", ("a", "b"))


def _dataset(seed=0, n=40, side=20, task=TWO, **changes):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    splits = {
        s: Split(rng.integers(0, 256, (n, 1, side, side), dtype=np.uint8), task.targets(labels))
        for s in ("train", "val", "test")
    }
    splits |= changes
    return Dataset(splits, Description("x", task, "both"))


def _kinds(dataset, **options):
    return {p.kind: p for p in check(dataset, **options)}


def test_intensities_that_no_package_can_record_are_refused():
    images = _dataset().train.images.astype(np.float64)
    images[7, 0, 1, 1] = 1e13
    splits = {s: Split(images, _dataset().train.targets) for s in ("train", "val", "test")}
    found = _kinds(Dataset(splits, Description("x", TWO, "both")))["intensities"]
    assert found.level == "blocking" and "_images[7]" in found.found


def test_nothing_wrong():
    assert check(_dataset(), ipc=5) == []


def test_everything_is_listed_at_once():
    three = make_task("multi-class", ("a", "b", "c"))
    dataset = _dataset(task=three)
    images = dataset.train.images.astype(np.float32)
    images[3, 0, 2, 2] = np.nan
    images[5] = 7
    broken = _dataset(task=three, train=Split(images, dataset.train.targets))
    found = _kinds(broken)
    assert {"empty class", "dtype", "nan", "constant image", "class missing"} <= set(found)
    assert found["nan"].level == found["dtype"].level == found["empty class"].level == "blocking"
    assert all(p.remedy for p in found.values())
    with pytest.raises(DataError, match="more: run medistill check"):
        require_usable(broken)


def test_small_class():
    dataset = _dataset()
    fewer = dataset.train.take(np.flatnonzero((dataset.train.targets[:, 0] == 1) | (np.arange(40) < 10)))
    found = _kinds(_dataset(train=fewer), ipc=6)["small class"]
    assert "5 images, 6 asked for" in found.found


@pytest.mark.parametrize("ipc", [0, -1, 21])
def test_impossible_number_of_images(ipc):
    found = _kinds(_dataset(), ipc=ipc)
    assert found["images per class"].level == "blocking" and "1 to 20" in found["images per class"].remedy


@pytest.mark.parametrize("names", [("a", "a"), ("a", " "), ("a", "b" * 300)])
def test_class_names_that_cannot_be_used(names):
    dataset = _dataset(task=make_task("binary", names))
    assert _kinds(dataset)["class names"].level == "blocking"


@pytest.mark.parametrize("side", [20, 40])
def test_duplicates_across_splits(side):
    dataset = _dataset(side=side)
    images = dataset.splits["test"].images.copy()
    images[1] = dataset.train.images[7]
    near = dataset.train.images[9].astype(int) + np.random.default_rng(1).integers(-4, 5, (1, side, side))
    images[2] = near.clip(0, 255)
    found = _kinds(_dataset(side=side, test=Split(images, dataset.splits["test"].targets)))
    assert found["exact duplicates"].found.startswith("1 of 40 test images are in train")
    assert found["near duplicates"].found.startswith("1 of 40")


def test_patients_and_priors():
    base = _dataset(n=400)
    patients = np.array([f"p{i}" for i in range(400)])
    skewed = TWO.targets((np.arange(400) < 80).astype(int))
    found = _kinds(
        _dataset(n=400, train=Split(base.train.images, base.train.targets, patients),
                 test=Split(base.splits["test"].images, skewed, patients))
    )  # fmt: skip
    assert "400 patients are in train and test" in found["patients across splits"].found
    assert "prior shift" in found


def test_one_split_is_told(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        train_images=rng.integers(0, 255, (40, 16, 16), dtype=np.uint8),
        train_labels=np.arange(40) % 2,
    )
    assert "split made" in _kinds(load(tmp_path / "x.npz"))


def _findings(targets):
    task = make_task("multi-label", [f"finding {i}" for i in range(targets.shape[1])])
    images = np.random.default_rng(1).integers(0, 256, (3, len(targets), 1, 16, 16), dtype=np.uint8)
    splits = {name: Split(each, targets) for name, each in zip(("train", "val", "test"), images, strict=True)}
    return Dataset(splits, Description("x", task, "both"))


def test_several_findings_are_usable():
    assert check(_findings(np.random.default_rng(0).integers(0, 2, (80, 3)).astype(np.uint8)), ipc=5) == []


@pytest.mark.parametrize(("value", "kind"), [(0, "empty class"), (1, "full class")])
def test_a_finding_that_no_image_has_or_every_one_is_blocking(value, kind):
    targets = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(np.uint8)
    targets[:, 3] = value
    found = _kinds(_findings(targets))
    assert found[kind].level == "blocking" and "finding 3" in found[kind].found


@pytest.mark.parametrize("label", [-1, 2, 9])
def test_a_label_that_training_has_not_is_refused_when_read(tmp_path, label):
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16), dtype=np.uint8)
    labels = np.arange(40) % 2
    wrong = labels.copy()
    wrong[7] = label
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=wrong)
    with pytest.raises(DataError, match=rf"test_labels\[7\] is {label} \(1 images\); allowed: 0 to 1"):
        load(tmp_path / "x.npz")


def test_volumes_are_checked_as_pictures_are():
    targets = TWO.targets(np.arange(40) % 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 1, 16, 16, 16), dtype=np.uint8)
    images[2, 3] = images[0, 5]
    images[0, 1] = 9
    splits = {name: Split(each, targets) for name, each in zip(("train", "val", "test"), images, strict=True)}
    found = _kinds(Dataset(splits, Description("x", TWO, "both")))
    assert set(found) == {"exact duplicates", "constant image"}
    assert found["exact duplicates"].found.startswith("1 of 40 test images are in train")


def test_known_troubles_of_the_real_sets(real):
    breast = _kinds(load(real("breastmnist.npz")))
    # Documented: 25 of 156 test images have a near-duplicate in training, one of them identical.
    exact = [p.found for p in check(load(real("breastmnist.npz"))) if p.kind == "exact duplicates"]
    near = [p.found for p in check(load(real("breastmnist.npz"))) if p.kind == "near duplicates"]
    assert "near duplicates" in breast
    assert any(f.startswith("1 of 156 test images are in train") for f in exact)
    assert any(f.startswith("24 of 156 test images are in train") for f in near)
    assert "prior shift" in _kinds(load(real("pneumoniamnist.npz")), thorough=False)


def _deep(values, **changed):
    """A phantom whose images are of those numbers, in [0, 1], and what is done to splits."""
    phantom = make_phantom(Phantom(classes=2, images=60, size=24))
    splits = {
        name: replace(split, images=changed.get(name, values)(split.images / 255))
        for name, split in phantom.splits.items()
    }
    return Dataset(splits, phantom.description)


def test_one_bright_spot_does_not_take_all_shades():
    def with_spot(images):
        deep = (1020 * images).astype(np.uint16)
        deep[3, 0, :2, :2] = 65535
        return deep

    dataset = _deep(lambda images: (1020 * images).astype(np.uint16), train=with_spot)
    (issue,) = [issue for issue in check(dataset) if issue.kind == "outlying intensities"]
    assert issue.level == "warning" and "the others reach 0 to 65535" in issue.found
    prepared = prepare(dataset)
    low, high = prepared.preprocessing.image.window
    assert low < 50 and 600 < high <= 1020
    assert len(np.unique(prepared.train.pixels)) > 150, "shades that are left"
    asked = prepare(dataset, DataConfig(window=(0, 65535)))
    assert asked.preprocessing.image.window == (0, 65535)


@pytest.mark.parametrize("factor", [255, 0.01])
def test_splits_on_different_scales_are_blocked(factor):
    dataset = _deep(
        lambda images: images.astype(np.float32), test=lambda images: (factor * images).astype(np.float32)
    )
    (issue,) = [issue for issue in check(dataset) if issue.kind == "scales"]
    assert (
        issue.level == "blocking"
        and "most pixels of train lie from 0" in issue.found
        and "of test from 0" in issue.found
    )
    with pytest.raises(DataError, match="most pixels of train"):
        require_usable(dataset)


def test_usual_scales_are_no_matter():
    for dtype, top in ((np.uint8, 255), (np.uint16, 4095), (np.int16, 2000), (np.float32, 1.0)):
        dataset = _deep(lambda images, dtype=dtype, top=top: (top * images).astype(dtype))
        assert not {"scales", "outlying intensities"} & {issue.kind for issue in check(dataset)}


def test_copies_within_a_split_and_contradictory_labels_are_told():
    dataset = _dataset()
    images = dataset.train.images.copy()
    images[10], images[21] = images[4], images[6]  # the same class, the other class
    found = _kinds(Dataset({**dataset.splits, "train": replace(dataset.train, images=images)}, dataset.description))
    assert found["copies"].found.startswith("2 of 40 train images are copies of others of train")
    assert "train_images[10] of [4]" in found["copies"].found
    assert (
        found["contradictory labels"].found.startswith("1 train images")
        and "[21] of [6]" in found["contradictory labels"].found
    )


def test_a_patient_with_two_numbers_is_suspected():
    """Equal images of two patients, in one split or in two; of one patient, or of nobody, they say nothing."""
    dataset = _dataset()
    images = dataset.train.images.copy()
    images[10] = images[4]
    other = dataset.splits["test"].images.copy()
    other[3] = images[7]

    def found(same, known=True):
        patients = np.array([f"patient {i}" for i in range(len(images))])
        patients[10] = patients[4] if same else patients[10]
        splits = {
            "train": replace(dataset.train, images=images, patients=patients),
            "test": replace(dataset.splits["test"], images=other, patients=np.full(len(other), "patient 7")),
        }
        if not known:
            splits = {name: replace(part, patients=None) for name, part in splits.items()}
        return _kinds(Dataset(splits, dataset.description))

    told = found(same=False)["several patients"]
    assert told.found.startswith("1 images are those of another patient, or nearly, for instance train_images[10]")
    assert told.rows == (("train", 10), ("train", 4))
    assert "several patients" not in found(same=True) and "several patients" not in found(same=False, known=False)


def test_a_split_made_here_does_not_tear_copies_apart():
    dataset = _dataset(n=80)
    images = dataset.train.images.copy()
    images[1::2] = images[::2]
    task = make_task("binary", ("a", "b"))
    targets = task.targets(np.repeat(np.arange(40) % 2, 2))
    split = complete(Dataset({"train": Split(images, targets)}, Description("x", task)), Key(0))
    seen = [{image.tobytes() for image in part.images} for part in split.splits.values()]
    assert len(seen) == 3 and not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert any("near-copies together" in note for note in split.description.notes)


def _split_of(images, per_image=1):
    task = make_task("binary", ("a", "b"))
    targets = task.targets(np.arange(len(images)) // per_image % 2)
    return complete(Dataset({"train": Split(images, targets)}, Description("x", task)), Key(0))


@pytest.mark.parametrize("side", [12, 40])
def test_a_split_made_here_does_not_tear_near_copies_apart(side):
    """Neighbouring slices, brighter or darker prints, noise: nearly the same, through others too."""
    rng = np.random.default_rng(0)
    base = rng.integers(40, 200, (30, 1, side, side))
    noisy = [base, base + rng.integers(-2, 3, base.shape), base * 1.2, base * 1.2 + rng.integers(-2, 3, base.shape)]
    images = np.stack(noisy, axis=1).reshape(120, 1, side, side).clip(0, 255).astype(np.uint8)
    split = _split_of(images, 4)
    family = {images[row].tobytes(): row // 4 for row in range(len(images))}
    seen = [{family[image.tobytes()] for image in part.images} for part in split.splits.values()]
    assert len(seen) == 3 and not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert sum(len(part) for part in split.splits.values()) == 120


def test_families_are_found_through_others_and_not_where_all_are_alike():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 600))
    chain = np.stack([start + step * (end - start) / 40 for step in range(12)])  # the ends correlate by 0.93
    others = rng.normal(size=(8, 600))
    images = np.concatenate([others, chain]).reshape(20, 1, 20, 30)
    assert np.corrcoef(chain[0], chain[-1])[0, 1] < 0.96
    assert families(images, 12, block=3).tolist() == [*range(8), *[8] * 12]
    images[13] = images[10]
    assert families(images, 11).tolist() == [*range(13), 10, *range(14, 20)], "equal ones only"
    flat = np.full((3, 1, 4, 4), 7, dtype=np.uint8)
    flat[2] = 9
    assert families(flat, 3).tolist() == [0, 0, 2], "without contrast only equal ones"
