"""Many files: the same however they are read, kept for the next time, and under no name that anybody gave."""

import json
import os
import shutil

import numpy as np
import pytest

from dicom_files import SECRETS, hospital
from medistill.config import DataConfig
from medistill.data import read_cache, reading
from medistill.data.load import load
from medistill.data.pseudonym import pseudonym
from medistill.errors import DataError
from medistill.files import user_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "cache"))
    pseudonym.__globals__["_salt"].cache_clear()
    yield
    pseudonym.__globals__["_salt"].cache_clear()


def same(first, second):
    assert first.fingerprint == second.fingerprint and first.description == second.description
    for name, part in first.splits.items():
        other = second.splits[name]
        assert np.array_equal(part.files, other.files) and np.array_equal(part.sites, other.sites)


def test_processes_read_what_threads_read(tmp_path, monkeypatch):
    source = hospital(tmp_path / "scans", images=20)
    (source / "healthy" / "broken.dcm").write_bytes((source / "healthy" / "IM000.dcm").read_bytes()[:-300])
    config = DataConfig(unreadable=0.1)
    by_threads = load(source, config)
    shutil.rmtree(user_cache() / "read")
    monkeypatch.setattr(reading, "PROCESSES_FROM", 1)
    monkeypatch.setattr("medistill.data.assemble.usable_cores", lambda: 2)
    asked = []
    ours = reading._by_processes
    monkeypatch.setattr(reading, "_by_processes", lambda *given: asked.append(1) or ours(*given))
    same(by_threads, load(source, config))
    assert asked
    with pytest.raises(DataError, match="broken"):
        load(source)


def test_what_was_read_is_not_read_again_until_a_file_changes(tmp_path, monkeypatch):
    source = hospital(tmp_path / "scans")
    first = load(source)
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read_one", None)
        same(first, load(source))
    changed = source / "healthy" / "IM003.dcm"
    shutil.copy(source / "tumour" / "IM003.dcm", changed)
    again = load(source)
    assert again.fingerprint != first.fingerprint
    os.utime(changed, ns=(1, 1))
    same(again, load(source))
    same(load(source, DataConfig(size=(16, 16))), load(source, DataConfig(size=(16, 16))))


def test_a_damaged_entry_is_read_anew(tmp_path):
    source = hospital(tmp_path / "scans")
    first = load(source)
    (entry,) = (user_cache() / "read").iterdir()
    for content in (b"", b"{}", json.dumps({"arrays": ["train"], "facts": {}}).encode()):
        (entry / "facts.json").write_bytes(content)
        same(first, load(source))
    (entry / "train.npy").write_bytes(b"damaged")
    same(first, load(source))
    assert np.load(entry / "train.npy").shape  # mended


def test_the_cache_holds_no_name_and_no_header(tmp_path):
    source = hospital(tmp_path / "Müller, Erika")
    lines = [f"IM{number:03d},{kind},PID-{kind}-{number // 2}" for number in range(24) for kind in ("healthy",)]
    (source / "labels.csv").write_text(
        "\n".join(["file,label,patient", *lines[:12], *(x.replace("healthy,", "ill,") for x in lines[12:])])
    )
    shutil.rmtree(source / "tumour")
    load(source)
    secrets = [*SECRETS.values(), "PID-", "IM00", "Erika", "MRN-4711", "healthy", "SN5521"]
    kept = [file for file in user_cache().rglob("*") if file.is_file()]
    assert any(file.name == "facts.json" for file in kept)
    for file in kept:
        content = file.read_bytes() + str(file.relative_to(user_cache())).encode()
        assert not [secret for secret in secrets if secret.encode() in content], file


def test_only_the_last_entries_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(read_cache, "KEPT", 2)
    source = hospital(tmp_path / "scans", images=12)
    for size in (16, 18, 20, 22):
        load(source, DataConfig(size=(size, size)))
    assert len(list((user_cache() / "read").iterdir())) == 2


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    source = hospital(tmp_path / "scans")
    first = load(source)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "file"))
    pseudonym.__globals__["_salt"].cache_clear()
    same(first, load(source))


def test_pseudonyms_differ_between_users_and_tell_the_same_from_others(tmp_path, monkeypatch):
    ours = pseudonym("4711")
    assert ours == pseudonym("4711") != pseudonym("4712") and pseudonym("") == ""
    assert (user_cache() / "salt").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "other"))
    pseudonym.__globals__["_salt"].cache_clear()
    assert pseudonym("4711") != ours
