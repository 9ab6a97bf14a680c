import numpy as np
import pytest

from medistill.data.checks import check, require_usable
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.load import load
from medistill.errors import DataError


def _dataset(seed=0, n=40, side=20, **changes):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    splits = {
        s: Split(rng.integers(0, 256, (n, side, side, 1), dtype=np.uint8), labels.copy())
        for s in ("train", "val", "test")
    }
    splits |= changes
    return Dataset(splits, Description("x", ("a", "b"), "both"))


def _kinds(dataset, **options):
    return {p.kind: p for p in check(dataset, **options)}


def test_nothing_wrong():
    assert check(_dataset(), ipc=5) == []


def test_everything_is_listed_at_once():
    dataset = _dataset()
    images = dataset.train.images.astype(np.float32)
    images[3, 2, 2] = np.nan
    images[5] = 7
    labels = dataset.train.labels.copy()
    labels[0] = 9
    broken = Dataset({**dataset.splits, "train": Split(images, labels)}, Description("x", ("a", "b", "c"), "both"))
    found = _kinds(broken)
    assert {"label range", "empty class", "dtype", "nan", "constant image", "class missing"} <= set(found)
    assert found["nan"].level == found["label range"].level == found["empty class"].level == "blocking"
    assert all(p.remedy for p in found.values())
    with pytest.raises(DataError, match="more: run medistill check"):
        require_usable(broken)


def test_small_class():
    dataset = _dataset()
    fewer = dataset.train.take(np.flatnonzero((dataset.train.labels == 0) | (np.arange(40) < 10)))
    found = _kinds(_dataset(train=fewer), ipc=6)["small class"]
    assert "5 images, 6 asked for" in found.found


@pytest.mark.parametrize("ipc", [0, -1, 21])
def test_impossible_number_of_images(ipc):
    found = _kinds(_dataset(), ipc=ipc)
    assert found["images per class"].level == "blocking" and "1 to 20" in found["images per class"].remedy


@pytest.mark.parametrize("names", [("a", "a"), ("a", " "), ("a", "b" * 300)])
def test_class_names_that_cannot_be_used(names):
    dataset = Dataset(_dataset().splits, Description("x", names, "both"))
    assert _kinds(dataset)["class names"].level == "blocking"


@pytest.mark.parametrize("side", [20, 40])
def test_duplicates_across_splits(side):
    dataset = _dataset(side=side)
    images = dataset.splits["test"].images.copy()
    images[1] = dataset.train.images[7]
    near = dataset.train.images[9].astype(int) + np.random.default_rng(1).integers(-4, 5, (side, side, 1))
    images[2] = near.clip(0, 255)
    found = _kinds(_dataset(side=side, test=Split(images, dataset.splits["test"].labels)))
    assert found["exact duplicates"].found.startswith("1 of 40 test images are in train")
    assert found["near duplicates"].found.startswith("1 of 40")


def test_patients_and_priors():
    base = _dataset(n=400)
    patients = np.array([f"p{i}" for i in range(400)])
    skewed = (np.arange(400) < 80).astype(int)
    found = _kinds(
        _dataset(n=400, train=Split(base.train.images, base.train.labels, patients),
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


def test_multi_label_is_blocking(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        train_images=rng.integers(0, 255, (40, 16, 16), dtype=np.uint8),
        train_labels=rng.integers(0, 2, (40, 5)),
    )
    assert _kinds(load(tmp_path / "x.npz"))["multi-label"].level == "blocking"


def test_known_troubles_of_the_real_sets(real):
    breast = _kinds(load(real("breastmnist.npz")))
    # Documented: 25 of 156 test images have a near-duplicate in training, one of them identical.
    exact = [p.found for p in check(load(real("breastmnist.npz"))) if p.kind == "exact duplicates"]
    near = [p.found for p in check(load(real("breastmnist.npz"))) if p.kind == "near duplicates"]
    assert "near duplicates" in breast
    assert any(f.startswith("1 of 156 test images are in train") for f in exact)
    assert any(f.startswith("24 of 156 test images are in train") for f in near)
    assert "prior shift" in _kinds(load(real("pneumoniamnist.npz")), thorough=False)
