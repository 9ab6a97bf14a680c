"""Data that stay in files: the same results as in memory, unpacked once, nothing half-written."""

import errno
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import medistill
from medistill.commands.check import check
from medistill.config import DataConfig
from medistill.data import arrays, assemble
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import parse_phantom
from medistill.data.preprocess import prepare
from medistill.data.readers import npz
from medistill.errors import DataError, OutputError
from medistill.files import user_cache

SMALL_DM = {"method": {"name": "dm", "iterations": 2, "networks": 2, "filters": 8, "real_batch": 8}}


@pytest.fixture
def stored(tmp_path):
    """A phantom as an ``.npz`` and as a folder of ``.npy`` files."""
    found = make_phantom(parse_phantom("phantom:classes=3,images=36,size=16"))
    values = {}
    for name, split in found.splits.items():
        values[f"{name}_images"], values[f"{name}_labels"] = split.images[:, 0], found.task.labels(split.targets)
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
        package[where, "mean"] = prepared.normalisation.mean
    assert package["memory"].identity == package["files"].identity
    assert package["memory", "mean"] == package["files", "mean"]
    assert not any((user_cache() / "scratch").iterdir()), "scratch files go away with their arrays"


def test_checks_find_the_same(stored, request):
    before = check(stored)
    request.getfixturevalue("everything_is_large")
    assert check(stored) == before


def test_an_archive_is_unpacked_once(stored, everything_is_large, capsys):
    path = stored.with_suffix(".npz")
    first = load(path)
    assert in_file(first.train.images) and "unpacking set.npz once: done" in capsys.readouterr().err

    def written():
        files = (user_cache() / "unpacked").rglob("*.npy")
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}

    before = written()
    assert len(before) == 3
    assert load(path).fingerprint == first.fingerprint
    assert written() == before and "unpacking" not in capsys.readouterr().err


def test_a_changed_archive_is_unpacked_anew(stored, everything_is_large):
    path = stored.with_suffix(".npz")
    before = load(path).fingerprint["sha256"]
    values = dict(np.load(path))
    np.savez_compressed(path, **values | {"train_images": 255 - values["train_images"]})
    assert load(path).fingerprint["sha256"] != before


def test_a_full_disk_is_one_line_and_nothing_is_kept(stored, everything_is_large, monkeypatch):
    usage = shutil.disk_usage(stored)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError, match="MEDISTILL_CACHE"):
        load(stored.with_suffix(".npz"))
    assert not list((user_cache() / "unpacked").rglob("*.npy"))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no posix_fallocate")
def test_a_full_disk_is_found_before_an_array_is_filled(stored, everything_is_large, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare(load(stored))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no posix_fallocate")
def test_where_no_room_can_be_reserved_none_is(stored, everything_is_large, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(arrays.os, "posix_fallocate", unknown)
    assert in_file(prepare(load(stored)).train.pixels)


def test_mixed_sizes_are_told_before_that_there_is_no_room(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20 + number, 24), np.uint8)).save(tmp_path / "set" / "a" / f"{number}.png")

    def full(*_):
        raise OutputError("no room")

    monkeypatch.setattr(assemble, "empty", full)
    with pytest.raises(DataError, match="mixed sizes"):
        load(tmp_path / "set")
    with pytest.raises(OutputError, match="no room"):
        load(tmp_path / "set", DataConfig(size=(16, 16)))


def test_images_of_a_large_folder_go_to_a_file_as_they_are_read(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            pixels = draw.integers(0, 256, (20 + number, 24), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    config = DataConfig(size=(16, 16), flips="horizontal")
    before = load(tmp_path / "set", config)
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(arrays, "LARGE", 100)
    after = load(tmp_path / "set", config, complete_splits=False)
    assert in_file(after.train.images) and after.train.images.shape == (6, 1, 16, 16)
    assert load(tmp_path / "set", config).fingerprint == before.fingerprint


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
