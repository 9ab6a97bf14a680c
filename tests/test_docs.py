"""Every snippet of the README, tutorial and how-tos is executed, in order, in an empty folder.

Commands run with tiny settings appended, so that figures mean nothing but every option,
path and name in the docs is real.
"""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, TINY_SETS

PAGES = ["README.md", "docs/tutorials/first-package.md", "docs/how-to/read-hospital-data.md", "docs/how-to/share-my-dataset.md", "docs/how-to/i-received-a-package.md", "docs/how-to/add-a-method.md", "docs/how-to/add-a-task.md", "docs/how-to/add-a-reader.md", "docs/how-to/add-a-preprocessing-step.md", "docs/how-to/add-an-audit-check.md", "docs/how-to/run-a-study.md"]  # fmt: skip
DM = ["method.iterations=3", "method.networks=2", "method.filters=8", "method.real_batch=8"]
EXTRA = {
    "distill": [*DM, "labels.recipe.max_steps=5", *(f"evaluate.{setting}" for setting in TINY_SETS)],
    "evaluate": TINY_SETS,
    "audit": [
        *("membership.iterations=2", "membership.training_steps=2"),
        *("canaries.iterations=2", "soft_labels.training_steps=4"),
    ],
    "train": TINY_SETS,
    "report": TINY_SETS,
}


def _blocks(page):
    return re.findall(r"```(sh|python)( file=\S+)?\n(.*?)```", (ROOT / page).read_text(), re.S)


def _folder_of_images(root):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("healthy", "ill"):
            (root / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 200, (20 + i % 2, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, package):
    _folder_of_images(tmp_path / "my-images")
    shutil.copytree(package, tmp_path / "received")
    blocks = _blocks(page)
    assert blocks
    for kind, file, text in blocks:
        if file:
            (tmp_path / file.partition("=")[2]).write_text(text)
            continue
        if kind == "python":
            script = (
                "import medistill.config as c; c.Recipe.model_fields['max_steps'].default = 5; "
                "c.Recipe.model_rebuild(force=True)\n" + text
            )
            _run([sys.executable, "-c", script], tmp_path)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("medistill "):
                words = shlex.split(line, comments=True)
                for setting in EXTRA.get(words[1], []):
                    words += ["--set", setting]
                _run([sys.executable, "-m", "medistill.cli", *words[1:]], tmp_path)
            elif line.startswith("pytest "):
                _run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *shlex.split(line)[1:]], tmp_path)


def _run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_links_in_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_make_targets_named_in_the_docs_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets, page


def test_tables_are_those_of_the_measured_data(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_results

    assert make_results.load()
    for file, text in make_results.pages().items():
        assert file.read_text() == text, f"{file}: run `make docs`"


def test_nothing_is_left_to_be_filled_in():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        assert "@@" not in page.read_text() and "TODO" not in page.read_text(), page
