"""Text in pixels: what is written is found, what bodies show is not taken for it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import medistill
from conftest import as_class_folders
from medistill.audits.audit import NotMeasuredError, Population, audits
from medistill.data.checks import check
from medistill.data.dataset import Dataset, Split
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.text import shows_text, text_lines
from medistill.keys import Key
from medistill.package.package import read_package

WORDS = ("SMITH J", "ID 48213", "12.03.1962", "Anna Mayer")


def written(image, text, size, at, colour=255):
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text(at, text, fill=colour, font=ImageFont.load_default(size))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(Phantom(classes=3, images=90, size=128))


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("size", [10, 12, 16])
def test_text_is_found_in_most_images(phantom, size, colour):
    draw, found = np.random.default_rng(0), 0
    for image in phantom.train.images[:40, 0]:
        at = int(draw.integers(1, 128 - 5 * size)), int(draw.integers(1, 126 - size))
        found += bool(text_lines(written(image, WORDS[int(draw.integers(4))], size, at, colour)))
    assert found >= 24


def test_a_line_lies_where_it_was_written():
    image = written(np.zeros((96, 160), np.uint8), "PWR 630630", 20, (30, 40))
    lines = text_lines(image)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    for line in lines:
        assert rows[0] <= line.top < line.bottom <= rows[-1] + 1
        assert columns[0] <= line.left < line.right <= columns[-1] + 1
    assert max(line.letters for line in lines) >= 5


def test_bodies_are_no_text(phantom):
    assert sum(shows_text(image) for image in phantom.train.images) == 0


@pytest.mark.parametrize("kind", ["noise", "flat", "stripes", "checks", "small"])
def test_patterns_are_no_text(kind):
    image = {
        "noise": np.random.default_rng(0).random((128, 128)),
        "flat": np.full((64, 64), 7),
        "stripes": np.tile(np.arange(128) // 6 % 2, (128, 1)),
        "checks": (np.add.outer(np.arange(128) // 16, np.arange(128) // 16) % 2),
        "small": written(np.zeros((24, 90), np.uint8), "PWR 630630", 16, (1, 1)),
    }[kind]
    assert text_lines(image) == []


def test_check_names_the_images_that_show_text(phantom):
    images = phantom.train.images.copy()
    for row in (3, 17):
        images[row, 0] = written(images[row, 0], "ID 48213", 16, (4, 100))
    changed = Split(images, phantom.train.targets, phantom.train.patients)
    dataset = Dataset({**phantom.splits, "train": changed}, phantom.description)
    (issue,) = [issue for issue in check(dataset) if issue.kind == "text in pixels"]
    assert issue.level == "warning" and "rows 3, 17" in issue.found and issue.found.startswith("train: 2 of")
    assert not [issue for issue in check(phantom) if issue.kind == "text in pixels"]


def test_files_that_show_letters_need_a_word_before_they_are_distilled(phantom, tmp_path, cli):
    images = phantom.train.images.copy()
    for image in images[::4]:
        image[0] = written(image[0], "ID 48213", 16, (4, 100))
    as_class_folders(tmp_path / "set", Split(images, phantom.train.targets), ("a", "b", "c"))
    source, out = tmp_path / "set", tmp_path / "package"
    distil = ["distill", source, "--method", "random", "--ipc", "1", "--size", "28", "--out", out]
    status, told, _ = cli("check", source)
    assert status == 0 and "text in pixels" in told and ".png" in told
    status, _, err = cli(*distil)
    assert status == 2 and "seem to show letters" in err and "data.burned_in_text=kept" in err and not out.exists()
    status, _, err = cli(*distil, "--set", "data.burned_in_text=kept")
    assert status == 0 and "text in pixels" in err
    assert read_package(out).manifest.provenance.configuration.data.burned_in_text == "kept"
    learned = ["--method", "dm", "--set", "method.iterations=1", "--out", tmp_path / "learned"]
    assert cli("distill", source, "--ipc", "1", "--size", "28", *learned)[0] == 0, "from noise, which shows none"


def test_a_package_that_shows_text_is_told(tmp_path):
    medistill.distill("phantom:classes=2,images=60,size=64", out=tmp_path / "p", method="random", ipc=3)
    package, nobody = read_package(tmp_path / "p"), Population([], np.zeros((0, 2), np.uint8))
    run = audits()["text_in_pixels"]().run
    assert run(package, nobody, nobody, Key(0)).verdict == "pass"
    pixels = package.pixels.copy()
    pixels[4, 0] = written(np.zeros((64, 64), np.uint8), "ID 482", 12, (2, 2))
    found = run(replace(package, pixels=pixels), nobody, nobody, Key(0))
    assert (found.verdict, found.details["images"]) == ("warn", [4])
    with pytest.raises(NotMeasuredError, match="no letter can be read"):
        run(replace(package, pixels=package.pixels[:, :, ::4, ::4]), nobody, nobody, Key(0))


@pytest.mark.parametrize(
    "name", ["alz4_64", "breastmnist_64", "ct_kidney4_64", "ct_sarscov2_64", "ct_iqoth_128", "oct_dme_128"]
)
def test_real_images_without_text_are_hardly_ever_taken_for_text(real, name):
    with np.load(real(f"{name}.npz")) as content:
        images = np.concatenate([content[key] for key in content if key.endswith("_images")])
    chosen = images[np.random.default_rng(1).permutation(len(images))[:2000]]
    assert sum(shows_text(image[None]) for image in chosen) <= 1
