"""The package: what is written is what is read, and nothing can be changed unnoticed."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import medistill
from conftest import SMALL_DM
from forging import npy, npz, sealed
from medistill.data.load import load
from medistill.errors import MedistillError, PackageError
from medistill.files import pretty_json
from medistill.package.container import read_files, write_files, zip_bytes
from medistill.package.package import folder_names, package_files, read_package, write_package


@pytest.fixture
def copy(package, tmp_path):
    shutil.copytree(package, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def zipped(package, tmp_path):
    (tmp_path / "p.zip").write_bytes(zip_bytes(read_files(package)))
    return tmp_path / "p.zip"


def test_written_and_read_back_are_equal(package):
    read = read_package(package)
    assert package_files(read) == read_files(package)
    assert read.size_bytes == sum(f.stat().st_size for f in package.rglob("*") if f.is_file())


def test_folder_and_zip_are_the_same_package(package, zipped, tmp_path):
    assert read_package(package).identity == read_package(zipped).identity
    medistill.distill("phantom:classes=3,images=36,size=16", out=tmp_path / "q.zip", ipc=2, settings=SMALL_DM)
    assert (tmp_path / "q.zip").read_bytes() == zipped.read_bytes()


def test_every_flipped_bit_of_every_file_is_noticed(copy):
    rng = np.random.default_rng(0)
    for file in sorted(f for f in copy.rglob("*") if f.is_file()):
        whole = file.read_bytes()
        for position in {0, len(whole) - 1, *rng.integers(0, len(whole), 4).tolist()}:
            changed = bytearray(whole)
            changed[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            with pytest.raises(PackageError):
                read_package(copy)
        file.write_bytes(whole)
    read_package(copy)


def test_every_flipped_bit_of_the_zip_is_noticed(zipped):
    whole = zipped.read_bytes()
    rng = np.random.default_rng(0)
    # The directory at the end holds names and sizes; it is probed densely.
    for position in {*rng.integers(0, len(whole), 60).tolist(), *range(len(whole) - 200, len(whole), 3)}:
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        zipped.write_bytes(changed)
        with pytest.raises(PackageError):
            read_package(zipped)


def test_missing_and_surplus_files(copy):
    image = next(copy.rglob("*.png"))
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(PackageError, match=r"is missing|empty folder"):
        read_package(copy)
    image.write_bytes(content)
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(PackageError, match="'notes.txt' is surplus.*remove what is no part of it"):
        read_package(copy)
    (copy / "notes.txt").unlink()
    (copy / "link").symlink_to("/etc/passwd")
    with pytest.raises(PackageError, match="is a link"):
        read_package(copy)


def test_an_edited_manifest_is_refused_even_with_a_new_id(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["data"]["licence"] = "public domain"
    path.write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="was altered"):
        read_package(copy)
    path.write_text(pretty_json({**manifest, "package_id": "0" * 64}))
    with pytest.raises(PackageError, match="was altered"):
        read_package(copy)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": "medistill-package"}', "[" * 100_000])
def test_nonsense_manifests(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(PackageError):
        read_package(copy)


def test_future_format_says_update(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(PackageError, match="update medistill"):
        read_package(copy)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "images/../../evil", "C:evil", "a\\b"])
def test_zip_paths_that_leave_are_not_opened(package, tmp_path, name):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for known, content in read_files(package).items():
            archive.writestr(known, content)
        archive.writestr(name, b"evil")
    with pytest.raises(PackageError, match="outside the package"):
        read_package(path)
    assert not (tmp_path / "evil.txt").exists()


def test_zip_bombs_and_links(package, tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"\0" * 10_000_000)
    with pytest.raises(PackageError, match="not stored"):
        read_package(path)
    link = zipfile.ZipInfo("manifest.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(PackageError, match="is a link"):
        read_package(path)


def test_inner_npz_bomb_and_pickle_are_refused(copy):
    """Even a consistent manifest does not make a surprising npz acceptable."""
    genuine, labels = read_files(copy), npy(np.repeat(np.arange(3, dtype=np.uint8), 2)[:, None])
    evil = io.BytesIO()
    np.save(evil, np.array([{}], dtype=object), allow_pickle=True)
    for images, needed in (
        (npy(np.zeros((500, 500, 500), np.uint8)), "train_images is larger than its images"),
        (evil.getvalue(), r"train_images is object \(1,\), expected uint8 \(6, 16, 16\)"),
        (npy(np.zeros((6, 16, 16), np.uint8)), "differs from distilled.npz"),
    ):
        content = npz({"train_images.npy": images, "train_labels.npy": labels})
        write_files(copy, sealed({**genuine, "distilled.npz": content}))
        with pytest.raises(PackageError, match=needed):
            read_package(copy)
    write_files(copy, sealed(genuine))
    assert len(read_package(copy)) == 6


@pytest.mark.parametrize("options", ["task=findings,depth=16", "task=grades,width=24", "depth=20,width=18"])
def test_packages_of_other_tasks_and_of_volumes(tmp_path, monkeypatch, options):
    source = f"phantom:classes=3,images=48,size=16,{options}"
    made = medistill.distill(source, out=tmp_path / "p", ipc=2, factor=2, settings=SMALL_DM)
    read, original = read_package(tmp_path / "p"), load(source)
    assert package_files(read) == read_files(tmp_path / "p")
    assert read.task == original.task and read.preprocessing.image.shape == original.image.shape
    assert read.stored_shape == tuple(side // 2 for side in original.image.shape)
    assert read.synthetic_per_stratum == made["per_stratum"] and len(made["per_stratum"]) == len(read.task.strata)
    assert read.task.membership(read.targets)[np.arange(len(read)), read.strata].all()
    assert read.data.pixels.shape[2:] == original.image.shape
    again = load(tmp_path / "p" / "distilled.npz", complete_splits=False)
    assert np.array_equal(again.train.images, read.pixels) and np.array_equal(again.train.targets, read.targets)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "p" / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path / "p")
    scope: dict = {}
    exec(code.replace("range(300)", "range(3)"), scope)
    assert scope["x"].shape[2:] == original.image.shape and scope["model"](scope["x"]).shape == (len(read), 3)


def test_nothing_is_pickled(package):
    for name, content in read_files(package).items():
        assert not content.startswith(b"\x80") and b"pickle" not in content, name


def test_loads_elsewhere_as_npz_and_as_folders(package):
    read = read_package(package)
    from_npz = load(package / "distilled.npz", complete_splits=False)
    from_folders = load(package / "images", complete_splits=False)
    for dataset in (from_npz, from_folders):
        assert np.array_equal(dataset.train.images, read.pixels)
        assert np.array_equal(dataset.train.targets, read.targets)
    image = Image.open(next((package / "images").rglob("*.png")))
    assert image.format == "PNG" and image.size == (16, 16)


def test_folder_names_sort_like_numbers():
    names = folder_names(tuple(f"Class {i} (ü/x)" for i in range(12)))
    assert names == sorted(names) and all(re.fullmatch(r"\d\d_[a-z0-9-]+", n) for n in names)
    assert folder_names(("é", "b")) == ["0", "1_b"]


@pytest.mark.parametrize(
    "source", ["phantom:classes=3,images=36,size=16", "phantom:classes=2,images=20,size=24,colour=true"]
)
def test_the_ten_lines_on_the_card_run(tmp_path, source):
    medistill.distill(source, out=tmp_path / "p", ipc=2, settings=SMALL_DM)
    card = (tmp_path / "p" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(code.strip().splitlines()) <= 11 and "medistill" not in code
    check = (
        "\nassert model(x).shape == (len(y), int(y.max()) + 1)\nassert (model(x).argmax(1) == y).float().mean() > 0.9"
    )
    done = subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path / "p", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_card_tells_a_stranger(package):
    card = (package / "README.md").read_text()
    (finding,) = read_package(package).manifest.audits
    for needed in (
        finding.explanation,
        "nothing is guaranteed",
        "Licence of the original: CC0-1.0",
        "no medical device",
        "Zhao, Bo",
    ):
        assert needed in card, needed
    assert (
        finding.name == "resemblance" and "Correlation with the nearest of 36 training images" in finding.explanation
    )


def test_coreset_package_says_patient_images(tmp_path):
    medistill.distill("phantom:classes=3,images=36,size=16", out=tmp_path / "p", method="random", ipc=2)
    card = (tmp_path / "p" / "README.md").read_text()
    assert "These are real images of patients" in card
    told = medistill.verify(tmp_path / "p")
    assert told["contains_real_images"] is True
    assert [(f["name"], f["verdict"], f["real_images"]) for f in told["audits"]] == [("resemblance", "fail", 6)]


def test_failed_write_leaves_nothing(package, tmp_path, monkeypatch):
    read = read_package(package)
    before = sorted(tmp_path.iterdir())
    written = []

    from pathlib import Path

    whole = Path.write_bytes

    def full_disk(self, data):
        written.append(self)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(MedistillError, match="No space left on device"):
        write_package(tmp_path / "p", read)
    assert sorted(tmp_path.iterdir()) == before
