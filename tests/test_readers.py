"""Every reader keeps its contract; which reader reads what; what nobody reads."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import npz_arrays
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.reader import Reader, readers, register_reader
from medistill.errors import ConfigError, DataError
from medistill.files import user_cache
from medistill.testing import ReaderConformance
from test_table import rows_of, write


def small():
    return make_phantom(Phantom(classes=3, images=36, size=16))


class TestNpz(ReaderConformance):
    reader = "npz"

    def make_source(self, folder):
        np.savez(folder / "x.npz", **npz_arrays(small()))
        return str(folder / "x.npz")


class TestNpyFolder(ReaderConformance):
    reader = "npy-folder"

    def make_source(self, folder):
        (folder / "arrays").mkdir(exist_ok=True)
        for name, array in npz_arrays(small()).items():
            np.save(folder / "arrays" / f"{name}.npy", array)
        return str(folder / "arrays")


class TestFolder(ReaderConformance):
    reader = "folder"

    def make_source(self, folder):
        rng = np.random.default_rng(0)
        for name in ("healthy", "ill"):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(12):
                picture = Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8))
                picture.save(folder / "images" / name / f"{i}.png")
        return str(folder / "images")


class TestZip(ReaderConformance):
    """With one folder around all, as systems pack it, and what they add."""

    reader = "zip"

    def make_source(self, folder):
        images = Path(TestFolder().make_source(folder))
        (folder / "images" / ".DS_Store").write_bytes(b"x")
        made = shutil.make_archive(str(folder / "scans"), "zip", images.parent, images.name)
        return made

    def test_it_is_what_the_folder_is(self, tmp_path):
        packed = load(self.make_source(tmp_path))
        plain = load(tmp_path / "images")
        assert packed.fingerprint == plain.fingerprint and packed.task == plain.task
        assert packed.description == plain.description
        assert not list((user_cache() / "scratch").glob("zip-*"))

    def test_a_table_within_a_zip(self, tmp_path):
        images = Path(TestFolder().make_source(tmp_path))
        lines = [f"{kind}/{number}.png,{kind}" for kind in ("healthy", "ill") for number in range(12)]
        (images / "labels.csv").write_text("\n".join(["file,label", *lines]))
        packed = load(shutil.make_archive(str(tmp_path / "scans"), "zip", images))
        assert packed.task.class_names == ("healthy", "ill")

    def test_what_cannot_be_unpacked_is_one_line_that_names_the_zip(self, tmp_path):
        source = Path(self.make_source(tmp_path))
        content = source.read_bytes()
        source.write_bytes(content[:100] + bytes(200) + content[300:])
        with pytest.raises(DataError, match=r"scans\.zip") as caught:
            load(source)
        assert "zip-" not in str(caught.value) and "\n" not in str(caught.value)
        with zipfile.ZipFile(tmp_path / "escape.zip", "w") as archive:
            archive.writestr("../../out/x.png", b"x")
            archive.writestr("a/x.png", b"x")
        with pytest.raises(DataError):
            load(tmp_path / "escape.zip")
        assert not list(tmp_path.rglob("out"))
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a").mkdir()
        (tmp_path / "bad" / "a" / "x.png").write_bytes(b"nothing")
        with pytest.raises(DataError, match=r"bad\.zip.a.x\.png"):
            load(shutil.make_archive(str(tmp_path / "bad"), "zip", tmp_path / "bad"))


class TestPhantom(ReaderConformance):
    reader = "phantom"

    def make_source(self, folder):
        return "phantom:classes=3,images=36,size=16"


class TestMedMNIST(ReaderConformance):
    reader = "medmnist"

    @pytest.fixture(autouse=True)
    def _official(self, monkeypatch, tmp_path):
        """A set of that name with the content that the catalogue is made to expect."""
        import hashlib

        from medistill.data.catalogue import catalogue

        path = tmp_path / "breastmnist.npz"
        dataset = make_phantom(Phantom(classes=2, images=24, size=16))
        np.savez(path, **npz_arrays(dataset))
        monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path))
        entry = catalogue()["sets"]["breastmnist"]
        monkeypatch.setitem(entry["md5"], "28", hashlib.md5(path.read_bytes()).hexdigest())

    def make_source(self, folder):
        return "breastmnist"


class TestTable(ReaderConformance):
    reader = "table"

    def make_source(self, folder):
        return str(write(folder / "list.csv", rows_of(folder)))


def test_conformance_is_asked_of_every_reader():
    asked = {case.reader for case in ReaderConformance.__subclasses__()}
    # By itself it reads nothing: it is asked for, see tests/test_dicom_sets.py.
    assert {reader.name for reader in readers()} == asked | {"attribute"}


def test_two_readers_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="reader 'npz' exists already"):

        @register_reader
        class Other(Reader):
            name, accepts = "npz", "nothing"

            def matches(self, source, path):
                return False

            def read(self, source, path, config):
                raise AssertionError


def test_what_nobody_reads_is_told_with_all_that_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for source, found in ((tmp_path / "notes.txt", "is no kind of file that is read"), ("nowhere", "no such file")):
        with pytest.raises(DataError, match=found) as problem:
            load(source)
        assert all(reader.accepts in str(problem.value) for reader in readers())


def test_sites_are_read_and_part_of_what_identifies_the_data(tmp_path):
    arrays = npz_arrays(small())
    np.savez(tmp_path / "plain.npz", **arrays)
    named = {f"{s}_sites": np.array([f"scanner {i % 2}" for i in range(len(arrays[f"{s}_labels"]))]) for s in ("train", "val", "test")}  # fmt: skip
    np.savez(tmp_path / "sites.npz", **arrays, **named)
    plain, sites = load(tmp_path / "plain.npz"), load(tmp_path / "sites.npz")
    assert sites.train.sites.tolist()[:2] == ["scanner 0", "scanner 1"] and plain.train.sites is None
    assert plain.fingerprint["sha256"] != sites.fingerprint["sha256"]


def test_an_official_set_knows_its_task():
    from medistill.data.catalogue import describe

    assert describe("retinamnist").task.kind == "ordinal"
    assert describe("chestmnist").task.kind == "multi-label"
    assert describe("pneumoniamnist").task.kind == "binary"
    assert describe("organmnist3d").task.outputs == 11
