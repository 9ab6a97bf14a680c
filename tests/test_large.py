"""Data that stay in files: the same results as in memory, unpacked once, nothing half-written."""

import shutil
import zipfile

import numpy as np
import pytest

import medistill
from medistill.commands.check import check
from medistill.data import arrays, npz
from medistill.data.load import load
from medistill.data.phantom import make_phantom, parse_phantom
from medistill.data.preprocess import prepare
from medistill.errors import DataError, OutputError
from medistill.files import user_cache

SMALL_DM = {"method": {"name": "dm", "iterations": 2, "networks": 2, "filters": 8, "real_batch": 8}}


@pytest.fixture
def stored(tmp_path):
    """A phantom as an ``.npz`` and as a folder of ``.npy`` files."""
    found = make_phantom(parse_phantom("phantom:classes=3,images=36,size=16"))
    values = {}
    for name, split in found.splits.items():
        values[f"{name}_images"], values[f"{name}_labels"] = split.images[..., 0], split.labels
    np.savez_compressed(tmp_path / "set.npz", **values)
    (tmp_path / "set").mkdir()
    for name, value in values.items():
        np.save(tmp_path / "set" / f"{name}.npy", value)
    return tmp_path / "set"


@pytest.fixture
def everything_is_large(monkeypatch, tmp_path):
    """From a few bytes on arrays lie in files, and blocks hold a few images."""
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "cache"))
    for module in (arrays, npz):
        monkeypatch.setattr(module, "LARGE", 100)
    monkeypatch.setattr(arrays, "BLOCK", 1000)


def in_file(array):
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None and type(base).__name__ == "mmap"


def test_a_folder_of_arrays_is_the_archive(stored):
    assert load(stored).fingerprint == load(stored.with_suffix(".npz")).fingerprint
    assert in_file(load(stored).train.images)


def test_files_give_the_bytes_that_memory_gives(stored, tmp_path, request):
    package = {}
    for where in ("memory", "files"):
        if where == "files":
            request.getfixturevalue("everything_is_large")
        made = medistill.distill(stored.with_suffix(".npz"), out=tmp_path / where, ipc=2, settings=SMALL_DM)
        package[where] = medistill.read_package(made["package"])
        prepared = prepare(load(stored.with_suffix(".npz")))
        assert in_file(prepared.train.pixels) == (where == "files")
        package[where, "mean"] = prepared.preprocessing.mean
    assert package["memory"].identity == package["files"].identity
    assert package["memory", "mean"] == package["files", "mean"]
    assert not any((user_cache() / "scratch").iterdir()), "scratch files go away with their arrays"


def test_checks_find_the_same(stored, request):
    before = check(stored)
    request.getfixturevalue("everything_is_large")
    assert check(stored) == before


def test_an_archive_is_unpacked_once(stored, everything_is_large, monkeypatch, capsys):
    path = stored.with_suffix(".npz")
    first = load(path)
    assert in_file(first.train.images) and "unpacking set.npz once: done" in capsys.readouterr().err
    monkeypatch.setattr(npz, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert load(path).fingerprint == first.fingerprint


def test_a_changed_archive_is_unpacked_anew(stored, everything_is_large):
    path = stored.with_suffix(".npz")
    before = load(path).fingerprint["sha256"]
    values = dict(np.load(path))
    np.savez_compressed(path, **values | {"train_images": 255 - values["train_images"]})
    assert load(path).fingerprint["sha256"] != before


def test_a_full_disk_is_one_line_and_nothing_is_kept(stored, everything_is_large, monkeypatch):
    usage = shutil.disk_usage(stored)
    monkeypatch.setattr(npz.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError, match="MEDISTILL_CACHE"):
        load(stored.with_suffix(".npz"))
    assert not list((user_cache() / "unpacked").rglob("*.npy"))


def test_an_array_shorter_than_it_says_is_refused_and_not_kept(stored, everything_is_large, tmp_path):
    broken = tmp_path / "broken.npz"
    with zipfile.ZipFile(stored.with_suffix(".npz")) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:-50] if name == "train_images.npy" else data)
    with pytest.raises(DataError, match="not a readable"):
        load(broken)
    assert not [p for p in (user_cache() / "unpacked").rglob("*") if p.is_file() and p.name == "train_images.npy"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array at all"])
def test_a_damaged_array_file_is_one_line(stored, content):
    (stored / "train_images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"train_images\.npy.*numpy\.save"):
        load(stored)


def test_pickles_in_array_files_are_never_opened(stored):
    np.save(stored / "train_labels.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        load(stored)


def test_blocks_are_the_array_and_taking_rows_takes_them(everything_is_large):
    values = np.arange(3000, dtype=np.int32).reshape(600, 5)
    kept = arrays.take(values, np.arange(599, -1, -1))
    assert in_file(kept) and np.array_equal(kept, values[::-1])
    together = [(start, block.copy()) for start, block in arrays.blocks(kept)]
    assert len(together) > 1 and np.array_equal(np.concatenate([b for _, b in together]), kept)
    arrays.release(kept)
    assert np.array_equal(kept, values[::-1]), "what was written stays when pages are let go"
