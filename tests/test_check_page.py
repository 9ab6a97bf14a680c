"""The page of ``check --html``: self-contained, names what was found, shows it."""

import base64
import io
import json
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


def arrays(dtype=np.uint8, shape=(20, 20), counts=(60, 20, 20), classes=2, **changes):
    """Arrays of an ``.npz`` of noise, those named changed by a function, replaced or left out (None)."""
    draw, made = np.random.default_rng(0), {}
    for name, count in zip(("train", "val", "test"), counts, strict=True):
        made[f"{name}_images"] = draw.integers(0, 256, (count, *shape)).astype(dtype)
        made[f"{name}_labels"] = np.arange(count) % classes
    for key, change in changes.items():
        made[key] = change(made[key]) if callable(change) else change
    return {key: value for key, value in made.items() if value is not None}


def holding(value, *place):
    def change(images):
        images[place] = value
        return images

    return change


NOISE = np.random.default_rng(1).integers(0, 256, (20, 12, 24, 30), dtype=np.uint8)
ONE_VALUE = {f"{name}_images": holding(7) for name in ("train", "val", "test")}
FINDINGS = {f"{name}_labels": NOISE[:1, :, :, :3].reshape(-1, 3)[:count] % 2 for name, count in
            (("train", 60), ("val", 20), ("test", 20))}  # fmt: skip
ODD = {
    "a NaN": (arrays("f4", train_images=holding(np.nan, 3, 4, 4)), "nan"),
    "NaN alone": (arrays("f4", train_images=holding(np.nan)), "nan"),
    "an image of NaN among many": (arrays("f4", counts=(300, 20, 20), train_images=holding(np.nan, 3)), "nan"),
    "NaN in a volume": (arrays("f4", (10, 12, 14), train_images=holding(np.nan, 3, 5)), "nan"),
    "infinite": (arrays("f2", test_images=holding(np.inf, 3, 4, 4)), "nan"),
    "more than a float32 holds": (arrays("f8", train_images=lambda x: (x - 128) * 1e306), "intensities"),
    "more than a package records": (arrays("i8", train_images=lambda x: x * -(2**50)), "intensities"),
    "16 bits": (arrays("f2"), ""),
    "other shapes": (arrays(train_images=holding(7, 3), test_images=holding(7, 3)(NOISE[:, 0].copy())), "shapes"),
    "volumes for pictures": (arrays(val_images=NOISE), "shapes"),
    "colours for gray": (arrays(test_images=NOISE[:, :3, :20, :20].transpose(0, 2, 3, 1)), "shapes"),
    "colours": (arrays(shape=(20, 20, 3)), ""),
    "one image a class": (arrays(counts=(2, 2, 2)), ""),
    "one image a class, no other split": (
        arrays(counts=(2, 1, 1), val_images=None, val_labels=None, test_images=None, test_labels=None), "",
    ),
    "one image": (arrays(counts=(1, 1, 1), classes=1), "one class"),
    "a class without training images": (arrays(classes=3, train_labels=lambda y: y // 2 * 2), "empty class"),
    "a class without test images": (arrays(classes=3, test_labels=lambda y: y * 0), ""),
    "an empty split": (arrays(counts=(60, 0, 20)), ""),
    "one value": (arrays(counts=(300, 20, 20), **ONE_VALUE), ""),
    "one value, floats": (arrays("f4", **ONE_VALUE), ""),
    "thin": (arrays(shape=(300, 2)), ""),
    "a pixel": (arrays(shape=(1, 1)), ""),
    "volumes": (arrays(shape=(10, 12, 14), train_images=holding(7, 3)), ""),
    "volumes in colour": (arrays(shape=(6, 12, 14, 3)), ""),
    "findings": (arrays(**FINDINGS), ""),
    "findings of no image": (arrays(**FINDINGS | {"train_labels": np.zeros((60, 3), int)}), "empty class"),
    "grades": (arrays(classes=4) | {"task": "ordinal"}, ""),
    "a grade without images": (arrays(classes=4, train_labels=lambda y: y // 3 * 3) | {"task": "ordinal"}, "empty class"),
    "classes without UTF-8": (arrays() | {"class_names": ["a\udcff", "b"]}, "class names"),
    "sites without UTF-8": (arrays() | {"train_sites": ["n\udcff", "s"] * 30}, ""),
}  # fmt: skip
"""Data by what is odd about it, and the kind of a problem that blocks its use; "" where none does."""


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("odd", ODD)
def test_odd_data_have_a_page_too(odd, tmp_path, cli):
    content, blocked = ODD[odd]
    np.savez(tmp_path / "odd.npz", **content)
    status, out, err = cli("check", tmp_path / "odd.npz", "--html", tmp_path / "c.html", "--json")
    found, page = json.loads(out), (tmp_path / "c.html").read_text(encoding="utf-8")
    blocking = {problem["kind"] for problem in found["problems"] if problem["level"] == "blocking"}
    assert status == (2 if blocking else 0) and not err
    assert blocked in blocking if blocked else not blocking
    assert "Training images" in page and page.rstrip().endswith("</html>")


def test_a_pixel_that_is_no_number_does_not_blacken_the_others(tmp_path):
    np.savez(tmp_path / "odd.npz", **ODD["a NaN"][0])
    found = medistill.check(tmp_path / "odd.npz", html=tmp_path / "c.html")
    assert found["overview"]["ranges"]["train"]["all"] == [0, 255]
    first = re.search('data:image/png;base64,([^"]+)', (tmp_path / "c.html").read_text())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first[1]))))
    assert 100 < shown[:20, :20].mean() < 150


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
