"""Data that people have in other forms than are read: what the line says is right, and its remedy works."""

import numpy as np
import pytest
from PIL import Image

from conftest import class_folders, npz_arrays
from medistill.data.load import load
from medistill.errors import DataError


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def test_labels_that_are_words_are_numbered_as_the_line_says(tmp_path, tiny):
    arrays = npz_arrays(tiny)
    words = np.array(["lung", "bone", "skin"])
    splits = [key for key in arrays if key.endswith("_labels")]
    for key in splits:
        arrays[key] = words[arrays[key].ravel().astype(int) % 3]
    with pytest.raises(DataError, match="searchsorted") as refused:
        load(saved(tmp_path / "x.npz", arrays))
    assert "names = numpy.unique(train_labels)" in str(refused.value) and "class_names" in str(refused.value)
    names = np.unique(arrays["train_labels"])
    numbered = {key: np.searchsorted(names, arrays[key]) for key in splits}
    read = load(saved(tmp_path / "y.npz", {**arrays, **numbered, "class_names": names}))
    assert read.description.class_names == ("bone", "lung", "skin")


@pytest.mark.parametrize(("shape", "bad"), [((8, 20, 20, 4), 4), ((8, 20, 20, 2), 2), ((8, 16, 20, 20, 4), 4)])
def test_transparency_in_arrays_is_no_volume(tmp_path, shape, bad):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(8) % 2}
    with pytest.raises(DataError, match=rf"transparency.*images\[\.\.\., :{bad - 1}\]"):
        load(saved(tmp_path / "x.npz", arrays))
    arrays["train_images"] = images[..., : bad - 1]
    assert load(saved(tmp_path / "y.npz", arrays)).train.images.shape[1] == bad - 1


@pytest.mark.parametrize("shape", [(8, 3, 20, 24), (8, 1, 20, 24), (8, 1, 16, 20, 24)])
def test_channels_that_come_first_are_moved_as_the_line_says(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(8) % 2}
    with pytest.raises(DataError, match=r"moveaxis\(images, 1, -1\)"):
        load(saved(tmp_path / "x.npz", arrays))
    arrays["train_images"] = np.moveaxis(images, 1, -1)
    read = load(saved(tmp_path / "y.npz", arrays))
    whole = np.concatenate([part.images for part in read.splits.values()])
    assert sorted(image.tobytes() for image in whole) == sorted(image.tobytes() for image in images)


def test_a_folder_of_kinds_that_are_not_read_says_which(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"holds no image, but 8 files .*\.webp.*convert them"):
        load(tmp_path)


def test_images_without_class_folders_are_counted_and_the_table_beside_them_named(tmp_path):
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    with pytest.raises(DataError, match="no class folder, but 6 images.*folder of its own"):
        load(tmp_path)
    (tmp_path / "truth.csv").write_text("file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
    with pytest.raises(DataError, match=r"name the table of labels as the source, for instance truth\.csv"):
        load(tmp_path)
    assert load(tmp_path / "truth.csv").description.class_names == ("a", "b")


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_patients_in_a_table_of_any_separator(tmp_path, separator):
    class_folders(tmp_path, splits=("",))
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    rows = [f"{file}{separator}p{i // 2}" for i, file in enumerate(files)]
    (tmp_path / "Patients.CSV").write_text(f"File name{separator}Patient ID\n" + "\n".join(rows))
    assert load(tmp_path).train.patients is not None


def test_transparent_pixels_are_told(tmp_path):
    class_folders(tmp_path, splits=("",), mode="RGB")
    assert not any("transparent" in note for note in load(tmp_path).description.notes)
    first, second = sorted(tmp_path.rglob("*.png"))[:2]
    Image.open(first).convert("RGBA").save(first)  # opaque
    picture = Image.open(second).convert("RGBA")
    picture.putpixel((2, 3), (9, 9, 9, 0))
    picture.save(second)
    assert any(note.startswith("1 files have transparent pixels") for note in load(tmp_path).description.notes)
