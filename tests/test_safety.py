"""Nothing of the user's is ever lost, whatever is given as a place to write to; settings mean what they say."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import medistill
from conftest import SMALL_DM, TINY, npz_arrays
from medistill.distil.checkpoint import RunFolder
from medistill.errors import ConfigError, MedistillError, OutputError, PackageError
from medistill.files import new_folder, read_json, require_writable, write_atomically
from medistill.package.container import read_files, write_files

SOURCE = "phantom:classes=3,images=36,size=16"


@pytest.fixture
def images(tmp_path):
    """A folder of class folders, and everything in it."""
    root = tmp_path / "images"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


def _content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("where", [".", "..", "new", "a", "a/new", "a.zip"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_package_never_touches_the_data(images, where, overwrite):
    before = _content(images.parent)
    with pytest.raises(ConfigError):
        medistill.distill(images, out=images / where, ipc=1, overwrite=overwrite, settings=SMALL_DM)
    assert _content(images.parent) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_but_packages_is_replaced(tmp_path, overwrite):
    for name in ("p/thesis.txt", "q.run/thesis.txt", "r.zip", "s.run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("years of work")
    before = _content(tmp_path)
    for name in ("p", "q", "r.zip", "s"):
        with pytest.raises(ConfigError, match="exists and is"):
            medistill.distill(SOURCE, out=tmp_path / name, ipc=1, overwrite=overwrite, settings=SMALL_DM)
    assert _content(tmp_path) == before


def test_pages_and_networks_replace_neither_data_nor_packages_nor_other_files(package, tmp_path, images):
    zipped = tmp_path / "z.zip"
    write_files(zipped, read_files(package))
    (tmp_path / "thesis.html").write_text("years of work")
    before = _content(tmp_path)
    wrong = [zipped, images, images / "a" / "0.png", images / "new.html", tmp_path / "thesis.html", tmp_path]
    for target in wrong:
        with pytest.raises((ConfigError, OutputError)):
            medistill.report(zipped, on=images, out=target, config=TINY)
        with pytest.raises((ConfigError, OutputError)):
            medistill.train(zipped, on=images, save=target, config=TINY)
    with pytest.raises(ConfigError, match="which is read"):
        medistill.train(package, on=images, save=package / "net.safetensors", config=TINY)
    assert _content(tmp_path) == before


def test_the_same_command_replaces_what_it_wrote(package, tmp_path):
    for _ in range(2):
        medistill.train(package, on=SOURCE, save=tmp_path / "n.safetensors", config=TINY)


def test_images_smaller_than_networks_take_are_known_again(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    medistill.distill(tmp_path / "data", out=tmp_path / "p", ipc=1, method="random", settings={})
    result = medistill.evaluate(tmp_path / "p", on=tmp_path / "data", config=TINY, attach=True)
    assert result["data"]["same_as_distilled"] and result["test_images"] < 16


def test_an_unfinished_run_does_not_replace_what_came_in_between(tmp_path):
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=1, settings=SMALL_DM)
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "p.run" / "cost.json").unlink()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no package"):
        medistill.distill(SOURCE, out=tmp_path / "p", ipc=1, settings=SMALL_DM)
    assert (tmp_path / "p" / "thesis.txt").exists()


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "p").mkdir()
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=1, settings=SMALL_DM)
    medistill.verify(tmp_path / "p")


def test_a_changed_package_is_not_called_finished(tmp_path):
    out = tmp_path / "p"
    medistill.distill(SOURCE, out=out, ipc=1, settings=SMALL_DM)
    whole = read_files(out)
    (out / "README.md").write_text("mine")
    with pytest.raises(PackageError, match="--overwrite makes it anew"):
        medistill.distill(SOURCE, out=out, ipc=1, settings=SMALL_DM)
    medistill.distill(SOURCE, out=out, ipc=1, settings=SMALL_DM, overwrite=True)
    assert read_files(out) == whole
    medistill.distill(SOURCE, out=tmp_path / "q", ipc=2, settings=SMALL_DM)
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "q", out)
    with pytest.raises(PackageError, match="not the package that this command made"):
        medistill.distill(SOURCE, out=out, ipc=1, settings=SMALL_DM)


def test_a_link_keeps_its_target(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x").read_text() == "1"
    write_atomically(tmp_path / "link" / "y", "2")
    assert (tmp_path / "real" / "y").read_text() == "2"


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    from pathlib import Path

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "old").touch()
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), new_folder(tmp_path / "p"):
        pass
    assert [p.name for p in tmp_path.rglob("*")] == ["p", "old"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file of that name"), new_folder(tmp_path / "file"):
        pass


def test_outputs_are_tried_before_the_work(package, tmp_path, cli):
    (tmp_path / "file").write_text("in the way")
    for call in (
        ["train", package, "--on", SOURCE, "--save", tmp_path / "file" / "net"],
        ["train", package, "--on", SOURCE, "--save", tmp_path],
        ["report", package, "--on", SOURCE, "--out", tmp_path / "file" / "r.html"],
        ["report", package, "--on", SOURCE, "--out", package / "report.html"],
    ):
        status, _, err = cli(*call)
        option = "--save" if call[0] == "train" else "--out"
        assert status == 2 and option in err and "training" not in err and "evaluating" not in err
    require_writable(tmp_path / "a" / "b" / "c", "--save")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    medistill.verify(package)


def test_command_line_wins_over_the_file(tmp_path, cli):
    file = tmp_path / "s.yaml"
    file.write_text("method: herding\nratio: 0.5\nseed: 4\ndata:\nevaluate: {repeats: 2, bootstrap: 100}\n")
    status, out, _ = cli("distill", SOURCE, "--out", tmp_path / "p", "--config", file, "--seed", 5, "--json")
    assert status == 0 and json.loads(out)["method"] == "herding"
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["provenance"]["seed"] == 5
    status, out, _ = cli("distill", SOURCE, "--out", tmp_path / "q", "--config", file, "--ipc", 1, "--json")
    assert status == 0 and json.loads(out)["images"] == 3
    assert json.loads((tmp_path / "q" / "manifest.json").read_text())["provenance"]["seed"] == 4


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--set", "method=dm", "--set", "method.iterations=3"], "'method' has no settings below it"),
        (["--set", "data=3"], "data: 3"),
        (["--set", "evaluate=3"], "evaluate: 3"),
        (["--set", "data.source=2024-13-45"], "is no value"),
        (["--size", "0"], "data.size"),
        (["--size", "-5"], "data.size"),
        (["--out", "/"], "the name of a folder"),
        (["--ipc", "two"], "--ipc"),
        (["--colour", "3"], "--colour"),
    ],
)
def test_more_bad_settings(options, needed, tmp_path, cli):
    out = [] if "--out" in options else ["--out", tmp_path / "p"]
    ipc = [] if "--ipc" in options else ["--ipc", 2]
    status, printed, err = cli("distill", SOURCE, *out, *ipc, *options)
    lines = err.splitlines()
    assert status == 2 and printed == "" and len(lines) == 1 and needed in lines[0], err
    assert not list(tmp_path.iterdir())


def test_commands_without_arguments_help(cli):
    assert cli()[0] == 0 and "distill" in cli()[1]
    assert cli("distill")[0] == 2 and len(cli("distill")[2].splitlines()) == 1


def test_control_c_says_how_to_go_on(tmp_path):
    code = (
        "from medistill.cli import main; import medistill.distil.checkpoint as c; c.CHECKPOINT_SECONDS = 0.05; main()"
    )
    command = [sys.executable, "-c", code, "distill", SOURCE, "--ipc", "2", "--out", str(tmp_path / "p"),
               "--set", "method.iterations=1000000", "--set", "method.filters=8"]  # fmt: skip
    # Tests that run in the background of a shell inherit that Ctrl-C means nothing.
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "p.run" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "goes on from what was kept" in err and "Traceback" not in err


def test_one_split_source_is_tested_on_its_own_test_part(tmp_path, images):
    medistill.distill(images, out=tmp_path / "p", ipc=1, settings=SMALL_DM | {"data": {"split_seed": 7}})
    own = medistill.train(tmp_path / "p", on=images, config=TINY)
    result = medistill.evaluate(tmp_path / "p", on=images, config=TINY)
    # One image of each class of six was split off; the others were distilled.
    assert own["test_images"] == result["test_images"] == 2
    assert result["data"]["same_as_distilled"]


def test_names_given_for_the_package_do_not_hinder_its_own_data(tmp_path, images):
    settings = SMALL_DM | {"data": {"class_names": ["benign", "malignant"]}}
    medistill.distill(images, out=tmp_path / "p", ipc=1, settings=settings)
    result = medistill.evaluate(tmp_path / "p", on=images, config=TINY)
    assert result["class_names"] == ["benign", "malignant"] and result["data"]["same_as_distilled"]


def test_results_on_other_data_do_not_go_into_the_package(package, tmp_path):
    before = read_files(package)
    with pytest.raises(ConfigError, match="not the data that the package was made from"):
        medistill.evaluate(package, on="phantom:classes=3,images=36,size=16,site=b", config=TINY, attach=True)
    assert read_files(package) == before


def test_test_data_of_one_class_give_no_auroc_and_no_nan(package, tmp_path, tiny, cli):
    arrays = npz_arrays(tiny)
    keep = arrays["test_labels"][:, 0] == 1
    arrays["test_images"], arrays["test_labels"] = arrays["test_images"][keep], arrays["test_labels"][keep]
    np.savez(tmp_path / "one.npz", **arrays)
    sets = [part for key, value in TINY.recipe.model_dump().items() for part in ("--set", f"recipe.{key}={value}")]
    sets += ["--set", "repeats=2", "--set", "random_draws=2", "--set", "bootstrap=100"]
    status, out, _ = cli("evaluate", package, "--on", tmp_path / "one.npz", "--json", *sets)
    result = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert status == 0 and result["arms"]["full"]["auroc"] == {"mean": None, "std": None, "ci95": None}
    assert result["recovery"]["auroc"] is None and result["gain_over_random"]["auroc"]["ci95"] is None
    assert result["arms"]["full"]["accuracy"]["mean"] is not None
    assert cli("evaluate", package, "--on", tmp_path / "one.npz", *sets)[0] == 0
    status, _, _ = cli("report", package, "--on", tmp_path / "one.npz", "--out", tmp_path / "r.html", *sets)
    page = (tmp_path / "r.html").read_text()
    drawn = [base64.b64decode(each).decode() for each in re.findall(r"data:image/svg\+xml;base64,([^\"']+)", page)]
    assert status == 0 and not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert sum(figure.count("not defined by the test images") for figure in drawn) == len(result["arms"])


def test_recipient_is_told_of_unusable_data(package, tmp_path, tiny):
    arrays = npz_arrays(tiny)
    arrays = {k: v.astype(np.float32) if k.endswith("images") else v for k, v in arrays.items()}
    arrays["test_images"][1, 2, 2] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    with pytest.raises(MedistillError, match="has NaN or infinite pixels"):
        medistill.train(package, on=tmp_path / "nan.npz", config=TINY)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_package_folder_with_a_pipe_is_refused(package, tmp_path):
    shutil.copytree(package, tmp_path / "copy")
    os.mkfifo(tmp_path / "copy" / "pipe")
    with pytest.raises(PackageError, match="not a plain file"):
        medistill.verify(tmp_path / "copy")


def test_what_is_written_has_the_rights_that_the_user_leaves(tmp_path):
    before = os.umask(0o077)
    try:
        medistill.distill(SOURCE, out=tmp_path / "p", method="random", ipc=1)
    finally:
        os.umask(before)
    made = [tmp_path / "p", *(tmp_path / "p").rglob("*"), *(tmp_path / "p.run").rglob("*")]
    assert len(made) > 5 and all(path.stat().st_mode & 0o077 == 0 for path in made)


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    folder = RunFolder(tmp_path / "p")
    with folder.claimed({"configuration": {}}, overwrite=False):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="p: another command is working on it; wait until it is done"):
                medistill.distill(SOURCE, out=tmp_path / "p", method="random", ipc=1, overwrite=overwrite)
        assert read_json(folder.path / "run.json") == {"configuration": {}}
    medistill.distill(SOURCE, out=tmp_path / "p", method="random", ipc=1, overwrite=True)
