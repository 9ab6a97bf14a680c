"""Class folders as people have them: tables beside them, other names of splits, links, test images alone."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

import medistill
from conftest import SMALL_DM, as_class_folders, class_folders
from medistill.config import DataConfig
from medistill.data.load import load
from medistill.errors import ConfigError, DataError


def test_a_table_of_patients_is_found_however_it_is_capitalised_and_others_are_told(tmp_path):
    class_folders(tmp_path, splits=("",))
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png"))
    lines = ["file,patient", *(f"{file},p{number // 2}" for number, file in enumerate(files))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    notes = " ".join(load(tmp_path).description.notes)
    assert (
        "1 tables beside the class folders were not read" in notes and "as not every image names its patient" in notes
    )
    (tmp_path / "metadata.csv").rename(tmp_path / "Patients.CSV")
    dataset = load(tmp_path)
    assert dataset.train.patients is not None and "not read" not in " ".join(dataset.description.notes)


def test_splits_called_otherwise_are_no_classes(tmp_path):
    for split in ("train_images", "test_images"):
        for kind in ("a", "b"):
            (tmp_path / split / kind).mkdir(parents=True)
            _image().save(tmp_path / split / kind / "0.png")
    with pytest.raises(
        DataError, match="test_images, train_images, each with the same folders a, b.*call the splits"
    ):
        load(tmp_path)


def _image(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 18), dtype=np.uint8))


def test_links_to_folders_are_followed_once_and_what_servers_leave_is_not_read(tmp_path):
    class_folders(tmp_path / "set", splits=("",))
    before = load(tmp_path / "set")
    more = tmp_path / "elsewhere"
    more.mkdir()
    for number in range(3):
        _image(100 + number).save(more / f"{number}.png")
    (tmp_path / "set" / "cat" / "more").symlink_to(more)
    (more / "loop").symlink_to(tmp_path / "set" / "cat")
    thumbnails = tmp_path / "set" / "dog" / "@eaDir" / "0.png"
    thumbnails.mkdir(parents=True)
    _image(7).save(thumbnails / "SYNOPHOTO_THUMB_M.jpg")
    after = load(tmp_path / "set")
    assert sum(map(len, after.splits.values())) == sum(map(len, before.splits.values())) + 3


def test_of_a_phones_several_pictures_the_first_is_taken_and_told(tmp_path):
    class_folders(tmp_path, splits=("",))
    first, second = _image(1).convert("RGB"), _image(2).convert("RGB")
    first.save(tmp_path / "cat" / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    notes = load(tmp_path, DataConfig(channels=1)).description.notes
    assert any(note.startswith("1 files hold several frames") for note in notes)


def test_accents_are_one_letter_however_they_are_composed(tmp_path):
    for name, form in (("one", "NFC"), ("two", "NFD")):
        for kind in ("müller", "other"):
            folder = tmp_path / name / unicodedata.normalize(form, kind)
            folder.mkdir(parents=True)
            for number in range(8):
                _image(number + 10 * (kind == "other")).save(folder / f"{number}.png")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert one.description.class_names == two.description.class_names
    assert one.fingerprint == two.fingerprint


def graded(root, names, images=8):
    """A folder of class folders; the grade is seen in how bright an image is."""
    draw = np.random.default_rng(0)
    for grade, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(images):
            pixels = draw.integers(0, 40, (16, 16)) + 50 * grade
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def brightness(dataset):
    """Mean of each class, in their order."""
    labels = dataset.task.labels(dataset.train.targets)
    return [dataset.train.images[labels == label].mean() for label in range(dataset.task.outputs)]


def test_nobody_guesses_in_which_order_words_are_grades(tmp_path, cli):
    """As the remedy says; names that are the data's own put the classes in order and rename none."""
    words = ("none", "mild", "moderate", "severe")
    source, out = graded(tmp_path / "set", words), tmp_path / "p"
    status, told, _ = cli("check", source, "--task", "ordinal")
    assert status == 2 and "which grade is the least nobody says: mild, moderate, none, severe" in told
    tiny = ["--method", "dm", "--set", "method.iterations=2", "--set", "method.filters=8", "--ipc", "2", "--out", out]
    status, _, err = cli("distill", source, "--task", "ordinal", *tiny)
    assert status == 2 and "--set 'data.class_names=[mild, moderate, none, severe]'" in err and not out.exists()
    dataset = load(source, DataConfig(task="ordinal", class_names=words))
    assert dataset.description.class_names == words and sorted(brightness(dataset)) == brightness(dataset)
    named = f"data.class_names=[{','.join(words)}]"
    assert cli("distill", source, "--task", "ordinal", "--set", named, *tiny)[0] == 0
    short = ["--set", "recipe.max_steps=10", "--set", "recipe.min_steps=10", "--set", "repeats=1", "--json"]
    status, told, err = cli("evaluate", out, "--on", source, *short)
    assert status == 0 and json.loads(told)["data"]["same_as_distilled"], err
    status, told, _ = cli("train", out, "--on", graded(tmp_path / "other", words[1:3]), *short)
    assert status == 0 and json.loads(told)["test_images"] == 16


def test_grades_with_numbers_are_in_their_order(tmp_path):
    dataset = load(graded(tmp_path, ("grade 2", "grade 9", "grade 10")), DataConfig(task="ordinal"))
    assert dataset.description.class_names == ("grade 2", "grade 9", "grade 10") and dataset.description.order_stated
    assert sorted(brightness(dataset)) == brightness(dataset)


def test_names_that_are_half_the_datas_own_are_refused(tmp_path):
    source = graded(tmp_path, ("a", "b", "c"))
    assert brightness(load(source, DataConfig(class_names=("x", "y", "z")))) == brightness(load(source))
    turned = brightness(load(source, DataConfig(class_names=("c", "B", "a"))))
    assert turned == sorted(turned, reverse=True)
    with pytest.raises(ConfigError, match=r"'b' in place of 'a'; allowed: the data's own names in any order"):
        load(source, DataConfig(class_names=("b", "y", "z")))


def test_a_site_that_names_its_classes_otherwise_says_which_they_are(tmp_path, cli):
    """As the remedy says; two may be one class of the package, and what is left out is not tested on."""
    medistill.distill("phantom:classes=2,images=24,size=16", out=tmp_path / "p", ipc=2, settings=SMALL_DM)
    own = load("phantom:classes=2,images=24,size=16").description.class_names
    site = load("phantom:classes=4,images=48,size=16,site=b")
    as_class_folders(tmp_path / "site" / "test", site.train, [f"Befund {number}" for number in range(4)])
    tiny = ["--set", "recipe.max_steps=10", "--set", "recipe.min_steps=10", "--set", "repeats=1"]
    ask = ["train", tmp_path / "p", "--on", tmp_path / "site", "--json", *tiny]
    status, _, err = cli(*ask)
    assert status == 2 and "class 'Befund 0' is not in the package" in err and "--rename-class 'Befund 0=...'" in err
    named = [f"Befund 0={own[0]}", f"Befund 1={own[1]}", f"Befund 2={own[1]}", "Befund 3="]
    status, out, _ = cli(*ask, *(word for name in named for word in ("--rename-class", name)))
    kept = site.train.targets[:, :3].sum()
    assert status == 0 and json.loads(out)["test_images"] == kept
    as_class_folders(tmp_path / "whole", site.train, [f"Befund {number}" for number in range(4)])
    page = ["report", tmp_path / "p", "--on", tmp_path / "whole", "--out", tmp_path / "page.html", *tiny]
    assert cli(*page)[0] == 2
    assert cli(*page, *(word for name in named for word in ("--rename-class", name)))[0] == 0
    for wrong, told in (
        ("Befund 9=a", "has no class 'Befund 9' to rename"),
        ("Befund 0", "--rename-class: 'Befund 0'"),
    ):
        status, _, err = cli(*ask, "--rename-class", wrong)
        assert status == 2 and told in err
    same = ["evaluate", tmp_path / "p", "--on", "phantom:classes=2,images=24,size=16", "--rename-class", "a=b"]
    status, _, err = cli(*same)
    assert status == 2 and "the package's own data" in err


def test_a_folder_of_test_images_alone_is_enough_to_test_a_package(tmp_path, cli):
    """All else needs training images, and says so."""
    medistill.distill("phantom:classes=2,images=24,size=16", out=tmp_path / "p", ipc=2, settings=SMALL_DM)
    site = load("phantom:classes=2,images=24,size=16,site=b")
    as_class_folders(tmp_path / "site" / "test", site.train, site.description.class_names)
    tiny = ["--set", "recipe.max_steps=10", "--set", "recipe.min_steps=10", "--set", "repeats=1"]
    status, out, _ = cli("train", tmp_path / "p", "--on", tmp_path / "site", "--json", *tiny)
    assert status == 0 and json.loads(out)["test_images"] == len(site.train)
    for call in (
        ["check", tmp_path / "site"],
        ["distill", tmp_path / "site", "--ipc", 2, "--out", tmp_path / "q"],
        ["evaluate", tmp_path / "p", "--on", tmp_path / "site"],
    ):
        status, _, err = cli(*call)
        assert status == 2 and "has test images alone; allowed: training images" in err
    (tmp_path / "site" / "val").mkdir()
    status, _, err = cli("train", tmp_path / "p", "--on", tmp_path / "site")
    assert status == 2 and "has test, val but no train folder" in err
