"""The page of ``check --html``: self-contained, names what was found, shows it."""

import re

import numpy as np
import pytest
from PIL import Image

import medistill
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.errors import ConfigError
from medistill.reporting.check_page import outliers
from test_shortcuts import with_marked_border


def folder(root, sizes=(24,)):
    """Class folders of pictures, one of them of a single value, one there twice."""
    draw = np.random.default_rng(0)
    for name in ("<b>ill", "well"):
        (root / name).mkdir(parents=True)
        for number in range(16):
            side = sizes[number % len(sizes)]
            pixels = draw.integers(0, 200, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"scan {number}.png")
    Image.new("L", (sizes[0], sizes[0]), 7).save(root / "well" / "scan 3.png")
    (root / "well" / "scan 5.png").write_bytes((root / "well" / "scan 4.png").read_bytes())
    return root


def test_the_page_shows_what_was_found_and_needs_no_other_file(tmp_path):
    source = folder(tmp_path / "data", sizes=(24, 32))
    page = tmp_path / "check.html"
    found = medistill.check(source, config=medistill.config.DataConfig(size=(24, 24)), html=page)
    text = page.read_text(encoding="utf-8")
    assert found["html"] == str(page.resolve())
    assert "&lt;b&gt;ill" in text and "<b>ill" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "This page shows real images" in text
    for title in ("Constant image", "Copies", "Outliers", "Sizes of the files", "24x24", "32x32"):
        assert title in text
    assert found["overview"]["sizes"] == {"24x24": 18, "32x32": 14}
    constant = next(p for p in found["problems"] if p["kind"] == "constant image")
    assert constant["files"] == ["well/scan 3.png"] and "well/scan 3.png" in text


def test_a_problem_names_the_file_on_the_console_but_not_in_a_package(tmp_path, cli):
    source = folder(tmp_path / "data")
    status, out, _ = cli("check", source)
    assert status == 0 and "(well/scan 3.png)" in out
    made = medistill.distill(source, out=tmp_path / "p", method="random", ipc=2)
    for file in (tmp_path / "p").rglob("*"):
        assert not file.is_file() or b"scan 3" not in file.read_bytes()
    assert made["package"]


def test_a_file_of_a_name_that_no_line_holds_is_told_in_one(tmp_path, cli):
    source = folder(tmp_path / "data")
    try:
        (source / "well" / "scan 3.png").rename(source / "well" / "scan\n\udcff.png")
    except (OSError, UnicodeError):
        pytest.skip("file names must be text here")
    status, out, _ = cli("check", source, "--html", tmp_path / "c.html")
    assert status == 0 and "(well/scan??.png)" in out


def test_a_planted_shortcut_is_named_on_the_page(tmp_path):
    dataset = with_marked_border(make_phantom(Phantom(classes=3, images=240)))
    arrays = {
        f"{name}_{kind}": values
        for name, part in dataset.splits.items()
        for kind, values in (("images", part.images[:, 0]), ("labels", dataset.task.labels(part.targets)))
    }
    np.savez(tmp_path / "planted.npz", **arrays)
    found = medistill.check(tmp_path / "planted.npz", html=tmp_path / "c.html")
    (shortcut,) = [p for p in found["problems"] if p["kind"] == "shortcut"]
    assert "border" in shortcut["found"] and "'1' from the rest" in shortcut["found"]
    assert found["shortcuts"][0]["strong"] and "the border of the images alone" in (tmp_path / "c.html").read_text()


@pytest.mark.parametrize(
    "source", ["phantom:task=findings,images=60", "phantom:depth=16,images=40", "phantom:images=40"]
)
def test_every_kind_of_data_has_a_page(source, tmp_path):
    medistill.check(source, html=tmp_path / "c.html")
    assert (tmp_path / "c.html").read_text().count("<img") >= 4


def test_a_file_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(ConfigError, match="--html"):
        medistill.check("phantom:images=40", html=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_outliers_are_those_unlike_all_others():
    draw = np.random.default_rng(0)
    images = (100 + draw.integers(0, 20, (200, 1, 16, 16))).astype(np.uint8)
    images[[17, 90]] = draw.integers(0, 255, (2, 1, 16, 16))
    assert set(outliers(images, 2)) == {17, 90}
