"""The command line as a person meets it: one clear line for bad input, JSON and nothing else, resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import QUICK, ROOT, TINY_SETS, npz_arrays
from medistill.package.container import read_files

SOURCE = "phantom:classes=3,images=36,size=16"
TINY_OPTIONS = [part for setting in TINY_SETS for part in ("--set", setting)]


def _bad_npz(tmp_path, tiny, **changes):
    arrays = npz_arrays(tiny)
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value(arrays[key])
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    return path


def _with_nan(images):
    images = images.astype(np.float32)
    images[2, 3, 3] = np.nan
    return images


def _with_label(value):
    def change(labels):
        labels = labels.astype(np.int64)
        labels[1] = value
        return labels

    return change


def _folder(tmp_path, kind):
    root = tmp_path / "images"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    if kind == "zero-byte":
        (root / "a" / "empty.png").touch()
    else:
        Image.new("RGB", (30, 20), (9, 8, 7)).save(root / "b" / "other.png")
    return root


BAD_DATA = {
    "missing file": (lambda t, d: t / "absent.npz", "no such file"),
    "not an npz": (lambda t, d: (t / "text.npz").write_text("hello") and t / "text.npz", "not a readable .npz"),
    "unknown name": (lambda t, d: "pneumoniamnst", "did you mean 'pneumoniamnist'"),
    "wrong keys": (lambda t, d: _bad_npz(t, d, train_images=None), "has no key 'train_images'"),
    "labels out of range": (lambda t, d: _bad_npz(t, d, test_labels=_with_label(7)), "test_labels[1] is 7"),
    "negative label": (lambda t, d: _bad_npz(t, d, train_labels=_with_label(-1)), "train_labels[1] is -1"),
    "float labels": (lambda t, d: _bad_npz(t, d, train_labels=lambda a: a.astype(float)), "dtype float64"),
    "nan pixels": (
        lambda t, d: _bad_npz(t, d, train_images=_with_nan, val_images=np.float32, test_images=np.float32),
        "train_images[2] has NaN",
    ),
    "empty class": (
        lambda t, d: _bad_npz(t, d, train_labels=lambda a: np.where(a == 1, 2, a)),
        "no image of class 1",
    ),
    "fewer labels than images": (lambda t, d: _bad_npz(t, d, train_labels=lambda a: a[:-1]), "one label an image"),
    "zero-byte png": (lambda t, d: _folder(t, "zero-byte"), "is empty (0 bytes)"),
    "mixed sizes and modes": (lambda t, d: _folder(t, "mixed"), "mixed sizes"),
    "empty folder": (lambda t, d: (t / "none").mkdir() or t / "none", "no class folder"),
}


def _one_clear_line(result, needed, tmp_path, before):
    status, out, err = result
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("medistill:")]
    assert len(lines) == 1 and needed in lines[0], err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name, cli, tmp_path, tiny):
    make, needed = BAD_DATA[name]
    source = make(tmp_path, tiny)
    before = sorted(p.name for p in tmp_path.iterdir())
    result = cli("distill", source, "--ipc", 2, "--out", tmp_path / "p", *QUICK)
    _one_clear_line(result, needed, tmp_path, before)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--ipc", "0"], "allowed: 1 to 12"),
        (["--ipc", "99999"], "allowed: 1 to 12"),
        (["--ratio", "1.5"], "above 0, below 1"),
        ([], "give one of --ipc and --ratio; "),
        (["--ipc", "2", "--ratio", "0.1"], "give one of --ipc and --ratio, not both"),
        (["--ipc", "2", "--method", "hearding"], "did you mean 'herding'"),
        (["--ipc", "2", "--set", "method.iteratons=3"], "did you mean 'iterations'"),
        (["--ipc", "2", "--set", "labels.recipe.least_steps=3"], "it is called 'min_steps' now"),
        (["--ipc", "2", "--set", "methd.iterations=3"], "did you mean 'method'"),
        (["--ipc", "2", "--set", "method.iterations=many"], "method.iterations"),
        (["--ipc", "2", "--set", "method.iterations"], "name=value"),
        (["--ipc", "2", "--set", "data.sze=16"], "did you mean 'size'"),
        (["--ipc", "2", "--flips", "sideways"], "data.flips"),
        (["--ipc", "2", "--size", "3"], "greater than or equal to 16"),
        (["--ipc", "2", "--fresh"], "No such option: --fresh; it is called --overwrite now"),
        (["--ipc", "2", "--threads", "0"], "--threads: 0; allowed: 1 or more"),
        (["--ipc", "2", "--config", "absent.yaml"], "absent.yaml"),
        (["--ipc", "2", "--set", "memory_limit_mb=.inf"], "memory_limit_mb: inf"),
    ],
)
def test_bad_settings(options, needed, cli, tmp_path):
    _one_clear_line(cli("distill", SOURCE, "--out", tmp_path / "p", *options), needed, tmp_path, [])


def test_misspelled_settings_of_data_are_told(cli, tmp_path):
    for words in (["check", SOURCE, "--set", "dat.size=28"], ["predict", SOURCE, "--ipc", 1, "--set", "dta.size=20"]):
        status, out, err = cli(*words)
        assert status == 2 and out == "" and "unknown setting" in err and "did you mean 'data'" in err
    (tmp_path / "c.yaml").write_text("repaets: 5\nevaluate: {bootstrap: 100}\n")
    status, out, err = cli("evaluate", "absent", "--on", SOURCE, "--config", tmp_path / "c.yaml")
    assert status == 2 and out == "" and "unknown setting 'repaets'; did you mean 'repeats'" in err


def test_files_of_settings_that_are_no_yaml(cli, tmp_path):
    for text, needed in (
        ("a: [1,\n", "line 2"),
        ("ipc: 1\nipc: 2\n", "'ipc' stands twice, line 1"),
        ("a:\n\tb: 1\n", "line 2"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        status, _, err = cli("distill", SOURCE, "--out", tmp_path / "p", "--config", tmp_path / "c.yaml")
        assert status == 2 and needed in err and len(err.strip().splitlines()) == 1, err


def test_names_of_outputs_that_mislead(cli, tmp_path):
    (tmp_path / "d.zip").mkdir()
    for name, needed in (("d.zip", "is a folder"), ("p.tar.gz", "no other archives"), ("x" * 300, "too long")):
        status, _, err = cli("distill", SOURCE, "--ipc", 1, "--out", tmp_path / name, *QUICK)
        assert status == 2 and needed in err.splitlines()[-1].lower() and "Traceback" not in err, err
    assert [p.name for p in tmp_path.iterdir()] == ["d.zip"] and not any((tmp_path / "d.zip").iterdir())


def test_output_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = cli("distill", SOURCE, "--ipc", 2, "--out", tmp_path / "file" / "p", *QUICK)
    _one_clear_line(result, "cannot be written", tmp_path, ["file"])
    if Path("/proc/self").exists():
        assert cli("distill", SOURCE, "--ipc", 2, "--out", "/proc/p", *QUICK)[0] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_read_only_folder(cli, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    _one_clear_line(
        cli("distill", SOURCE, "--ipc", 2, "--out", locked / "p"), "Permission denied", tmp_path, ["locked"]
    )


def test_full_disk(cli, tmp_path, monkeypatch):
    import medistill.files

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(medistill.files.os, "fsync", full)
    result = cli("distill", SOURCE, "--ipc", 2, "--out", tmp_path / "p", *QUICK)
    _one_clear_line(result, "No space left on device", tmp_path, [])


def test_full_disk_while_packing_keeps_the_work(cli, tmp_path, monkeypatch):
    whole = Path.write_bytes

    def full(self, data):
        if self.suffix == ".png":
            raise OSError(28, "No space left on device")
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = cli("distill", SOURCE, "--ipc", 2, "--out", tmp_path / "p", *QUICK)
    assert status == 2 and "No space left on device" in err
    assert [p.name for p in tmp_path.iterdir()] == ["p.run"]
    monkeypatch.undo()
    # `cli` patched sys.argv through the same monkeypatch, so the second run is a process of its own.
    done = _process("distill", SOURCE, "--ipc", 2, "--out", tmp_path / "p", *QUICK)
    assert done.returncode == 0 and "resuming at step 4" in done.stderr


def test_bad_packages_and_data_for_them(cli, package, tmp_path):
    assert cli("verify", tmp_path / "none")[0] == 2
    status, out, err = cli("evaluate", package, "--on", tmp_path / "none.npz", "--json")
    assert status == 2 and out == "" and "no such file" in err
    status, _, err = cli("evaluate", package, "--on", "phantom:classes=4,size=16,images=40", *TINY_OPTIONS)
    assert status == 2 and "'spiculated mass' is not in the package" in err


def _process(*arguments, checkpoint=None, **options):
    code = "import sys; from medistill.cli import main; "
    if checkpoint is not None:
        code += f"import medistill.distil.checkpoint as c; c.CHECKPOINT_SECONDS = {checkpoint}; "
    command = [sys.executable, "-c", code + "main()", *map(str, arguments)]
    if options.pop("start", False):
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_twice_and_killed_in_the_middle_give_the_same_bytes(tmp_path):
    settings = ("iterations=400", "networks=20", "filters=8")
    short = ("min_steps=50", "max_steps=60")
    options = ["--ipc", 2, "--teachers", 1, "--seed", 3]
    options += [word for setting in settings for word in ("--set", f"method.{setting}")]
    options += [word for setting in short for word in ("--set", f"labels.recipe.{setting}")]
    assert _process("distill", SOURCE, *options, "--out", tmp_path / "a").returncode == 0
    assert _process("distill", SOURCE, *options, "--out", tmp_path / "b").returncode == 0
    running = _process("distill", SOURCE, *options, "--out", tmp_path / "c", checkpoint=0.05, start=True)
    saved = tmp_path / "c.run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not saved.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert saved.exists() and not (tmp_path / "c").exists(), "was not killed in the middle"
    done = _process("distill", SOURCE, *options, "--out", tmp_path / "c")
    assert done.returncode == 0 and "resuming at step" in done.stderr
    assert not saved.exists()
    first = read_files(tmp_path / "a")
    assert first == read_files(tmp_path / "b") == read_files(tmp_path / "c")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_another_configuration_in_the_same_folder_is_refused(cli, tmp_path):
    options = ["distill", SOURCE, "--out", tmp_path / "p", *QUICK]
    assert cli(*options, "--ipc", 2)[0] == 0
    before = read_files(tmp_path / "p")
    status, _, err = cli(*options, "--ipc", 3, "--seed", 1)
    assert (
        status == 2 and "configuration.ipc (2 there, 3 here)" in err and "configuration.seed (0 there, 1 here)" in err
    )
    assert read_files(tmp_path / "p") == before
    status, _, err = cli(*options, "--ipc", 2)
    assert status == 0 and "finished already" in err
    assert cli(*options, "--ipc", 3, "--seed", 1, "--overwrite")[0] == 0
    assert read_files(tmp_path / "p") != before


def test_a_folder_of_somebody_else_is_not_replaced(cli, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("years of work")
    status, _, err = cli("distill", SOURCE, "--ipc", 2, "--out", tmp_path / "p", *QUICK)
    assert status == 2 and "is no package" in err
    assert (tmp_path / "p" / "thesis.txt").read_text() == "years of work"


def test_json_is_one_object_and_nothing_else(cli, package, tmp_path):
    calls = {
        "check": ["check", SOURCE],
        "distill": ["distill", SOURCE, "--ipc", 1, "--out", tmp_path / "p", *QUICK],
        "evaluate": ["evaluate", package, "--on", SOURCE, *TINY_OPTIONS],
        "train": ["train", package, "--on", SOURCE, *TINY_OPTIONS],
        "verify": ["verify", package],
        "methods": ["methods"],
        "report": ["report", package, "--on", SOURCE, "--out", tmp_path / "r.html", *TINY_OPTIONS],
    }
    for name, call in calls.items():
        status, out, _ = cli(*call, "--json")
        assert status == 0, name
        assert isinstance(json.loads(out), dict), name


def test_text_for_people(cli, package, tmp_path):
    assert "fingerprint" in cli("check", SOURCE)[1]
    assert "contains real patient images" in cli("methods")[1]
    assert "is whole and unaltered" in cli("verify", package)[1]
    status, out, err = cli("evaluate", package, "--on", SOURCE, *TINY_OPTIONS)
    assert status == 0 and "recovery above baseline" in out and "evaluating" in err
    assert "trained 2 networks" in cli("train", package, "--on", SOURCE, *TINY_OPTIONS)[1]


def test_check_lists_all_and_fails(cli, tmp_path, tiny):
    path = _bad_npz(
        tmp_path, tiny, train_labels=lambda a: np.where(a == 1, 2, a),
        train_images=_with_nan, val_images=np.float32, test_images=np.float32,
    )  # fmt: skip
    status, out, _ = cli("check", path, "--json")
    kinds = {p["kind"] for p in json.loads(out)["problems"] if p["level"] == "blocking"}
    assert status == 2 and kinds == {"nan", "empty class"}


def test_labels_out_of_range_are_refused_when_they_are_read(cli, tmp_path, tiny):
    path = _bad_npz(tmp_path, tiny, test_labels=_with_label(7))
    _one_clear_line(cli("check", path), "test_labels[1] is 7 (1 images); allowed: 0 to 2", tmp_path, ["bad.npz"])


def test_a_task_is_asked_for_by_name(cli, tmp_path):
    status, out, _ = cli("check", SOURCE, "--task", "ordinal", "--json")
    assert status == 0 and json.loads(out)["task"] == "ordinal"
    status, out, err = cli("check", SOURCE, "--task", "ordnial")
    assert status == 2 and out == "" and "did you mean 'ordinal'" in err
    findings = SOURCE + ",task=findings"
    for call in (["check", findings], ["distill", findings, "--ipc", 1, "--out", tmp_path / "p", *QUICK]):
        _one_clear_line(cli(*call, "--task", "multi-class"), "--task multi-class: the labels are no", tmp_path, [])


def test_settings_from_a_file(cli, tmp_path):
    (tmp_path / "s.yaml").write_text("ipc: 1\nseed: 4\nmethod: {name: dm, iterations: 3, networks: 2, filters: 8}\n")
    status, out, _ = cli("distill", SOURCE, "--out", tmp_path / "p", "--config", tmp_path / "s.yaml", "--json")
    assert status == 0 and json.loads(out)["images"] == 3
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["provenance"]["seed"] == 4


def test_help_needs_no_torch():
    code = "import sys; sys.argv=['medistill','--help']; from medistill.cli import main; main()"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "distill" in done.stdout
    assert not any(
        f"| {name}" in done.stderr or f" {name}\n" in done.stderr for name in ("torch", "sklearn", "matplotlib")
    )
