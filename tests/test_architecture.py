"""Rules of the code base that no reviewer should have to watch."""

import ast
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

SOURCE = ROOT / "src" / "medistill"
LAYERS = ["data", "nets", "package", "distil", "evaluation", "prediction", "reporting", "commands", "study"]
"""Each may import itself and those before it."""


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer):
    later = {f"medistill.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]} | {"medistill.cli"}
    for path in (SOURCE / layer).rglob("*.py"):
        wrong = {name for name in _imports(path) if any(name == x or name.startswith(x + ".") for x in later)}
        assert not wrong, f"{path} imports {wrong}"


def test_reporting_trains_nothing():
    for path in (SOURCE / "reporting").rglob("*.py"):
        assert not {n for n in _imports(path) if n.startswith(("medistill.nets", "medistill.distil", "torch"))}, path


def test_only_the_loop_runs_backward_on_images():
    users = [p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if ".backward(" in p.read_text()]
    assert sorted(users) == ["distil/loop.py", "nets/training.py"]


def test_no_global_randomness():
    banned = ("torch.manual_seed", "np.random.seed", "random.seed", "torch.rand(", "torch.randn(")
    for path in set(SOURCE.rglob("*.py")) - {SOURCE / "testing.py"}:  # which disturbs it on purpose
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if any(b in line for b in banned):
                assert "generator" in line, f"{path}:{number}: {line}"


def test_nothing_pickled():
    engines = SOURCE / "study" / "engines.py"  # hands runs to workers, and reads nothing from files
    for path in SOURCE.rglob("*.py"):
        banned = {"pickle", "shelve", "marshal"} | (set() if path == engines else {"joblib"})
        assert not _imports(path) & banned, path
        text = path.read_text()
        assert "torch.load(" not in text and "torch.save(" not in text and "allow_pickle=True" not in text, path


def test_files_are_short_and_documented():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert ast.get_docstring(ast.parse(text)), path


def test_public_functions_say_what_they_do():
    missing = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{path.name}:{node.name}")
    assert not [m for m in missing if not m.startswith("texts.py")], missing


def test_no_real_data_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [f for f in listed if f.endswith((".npz", ".dcm", ".nii", ".nii.gz"))]
