"""Rules of the code base that no reviewer should have to watch."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

SOURCE = ROOT / "src" / "medistill"

LAYERS = [
    "aliases", "errors", "registry", "keys", "formatting", "progress", "files", "settings", "config", "runtime", "parallel", "privacy", "tasks",
    "data", "augment", "nets", "package", "distil", "evaluation", "audits", "records", "prediction", "reporting", "commands",
    "study", "texts", "options", "cli_study", "cli", "testing",
]  # fmt: skip
"""Every module and package at the top; each may import itself and those before it. ``testing`` is for other packages."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name below ``medistill``."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(tree: ast.AST) -> set[str]:
    """Names of modules that a tree imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def inside(path: Path) -> set[str]:
    """Modules of ours that a file imports, by their names below ``medistill``."""
    known = modules()
    named = {name.removeprefix("medistill.") for name in imports(ast.parse(path.read_text()))}
    return {name for name in named if name in known and name}


def test_every_top_level_module_has_a_layer():
    tops = {name.split(".")[0] for name in modules() if name}
    assert tops == set(LAYERS)


def test_imports_point_one_way():
    for name, path in modules().items():
        if not name:
            continue  # the package itself looks its functions up when they are asked for
        own = LAYERS.index(name.split(".")[0])
        wrong = {other for other in inside(path) if LAYERS.index(other.split(".")[0]) > own}
        assert not wrong, f"{name} imports {wrong}"


def test_no_import_cycles():
    graph = {name: inside(path) - {name} for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


# Labels: what follows from them is the task's

LOSSES = {
    "cross_entropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "nll_loss",
    "one_hot",
    "kl_div",
}
ON_LABELS = {"softmax", "log_softmax", "sigmoid", "argmax", "bincount"}
LABEL_WORDS = re.compile(r"label|target|soft|probabilit|logit|score|answer|prediction|class", re.IGNORECASE)


def label_computations(tree: ast.AST) -> list[str]:
    """Calls that compute a loss, or a softmax, maximum or count of something that is called like labels."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in LOSSES:
            found.append(ast.unparse(node))
        elif name in ON_LABELS:
            receiver = [function.value] if isinstance(function, ast.Attribute) else []
            words = " ".join(ast.unparse(part) for part in [*receiver, *node.args])
            if LABEL_WORDS.search(words):
                found.append(ast.unparse(node))
    return found


def test_losses_and_maxima_of_labels_stand_in_tasks_alone():
    for name, path in modules().items():
        if name.split(".")[0] != "tasks":
            assert not label_computations(ast.parse(path.read_text())), f"{name}: {path}"


@pytest.mark.parametrize(
    "line",
    [
        "functional.cross_entropy(network.logits(p, x), y)",
        "torch.nn.functional.one_hot(y, 3)",
        "data.targets.argmax(axis=1)",
        "np.bincount(train.labels, minlength=3)",
        "state.label_logits.softmax(1)",
        "network.logits(p, x).sigmoid()",
    ],
)
def test_a_loss_outside_is_caught(line):
    assert label_computations(ast.parse(f"def f():\n    return {line}"))


def test_positions_and_pixels_may_be_counted():
    assert not label_computations(
        ast.parse("np.bincount(block.ravel(), minlength=256)\ndistance.argmin()\nnear.argmax(axis=1)")
    )


# Real images: behind their guard

GUARD = {"distil.real_images", "distil.private_images"}
"""Where real pixels are touched."""

BEHIND = {
    "pixels",
    "splits",
    "train",
    "_data",
    "_bank",
    "_strata",
    "_patients",
    "_images",
    "_batch",
    "_drawn",
    "_allowed",
    "_vault",
}
"""Attributes by which real images could be reached."""

HANDED_OVER = {("distil.problem", "prepared.train"), ("distil.problem", "prepared.dataset.train")}
"""Where the guard is given the images: the one place that makes a problem from a data set."""


def real_image_accesses(name: str, tree: ast.AST) -> list[str]:
    """Expressions of a module that reach real images without asking."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in BEHIND and (name, ast.unparse(node)) not in HANDED_OVER:
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("PixelBank", "TensorSplit", "getattr"):
            found.append(ast.unparse(node))
    return found


def test_real_images_are_reached_through_their_guard_alone():
    for name, path in modules().items():
        if name.startswith("distil") and name not in GUARD:
            assert not real_image_accesses(name, ast.parse(path.read_text())), name


@pytest.mark.parametrize(
    "line",
    [
        "problem.real._bank[rows]",
        "prepared.train.pixels",
        "self.real(problem)._data.pixels",
        "prepared.splits['train']",
        "getattr(problem.real, '_da' + 'ta')",
    ],
)
def test_access_past_the_guard_is_caught(line):
    assert real_image_accesses("distil.methods.dm", ast.parse(f"def f():\n    return {line}"))


def test_methods_ask_through_what_they_declare():
    for name, path in modules().items():
        if name.startswith("distil.methods."):
            text = path.read_text()
            assert "problem.real." not in text, f"{name}: ask self.real(problem), which answers what info declares"


# The rest


def test_reporting_trains_nothing():
    for path in (SOURCE / "reporting").rglob("*.py"):
        named = imports(ast.parse(path.read_text()))
        assert not {n for n in named if n.startswith(("medistill.nets", "medistill.distil", "torch"))}, path


def moved_images(tree):
    """Where the images of a state are assigned or changed in place."""
    found = []
    for node in ast.walk(tree):
        targets = {
            ast.Assign: lambda n: n.targets,
            ast.AugAssign: lambda n: [n.target],
            ast.AnnAssign: lambda n: [n.target],
        }
        places = targets[type(node)](node) if type(node) in targets else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
            places = [node.func.value] if in_place else []
        for place in places:
            inner = place.value if isinstance(place, ast.Subscript) else place
            if isinstance(inner, ast.Attribute) and inner.attr == "images" and ast.unparse(inner.value) != "self":
                found.append(ast.unparse(node))
    return found


def test_only_the_loop_moves_images():
    users = {name for name, path in modules().items() if moved_images(ast.parse(path.read_text()))}
    assert users - {"testing.methods"} == {"distil.loop"}


@pytest.mark.parametrize(
    "line",
    [
        "state.images = x",
        "state.images[0] = 0",
        "state.images += x",
        "state.images.zero_()",
        "state.images.lerp_(x, 1)",
    ],
)
def test_images_moved_elsewhere_are_caught(line):
    assert moved_images(ast.parse(line))


def test_backward_is_called_by_the_training_alone():
    users = {name for name, path in modules().items() if ".backward(" in path.read_text()}
    assert users == {"nets.training"}


def test_no_global_randomness():
    banned = ("torch.manual_seed", "np.random.seed", "random.seed", "torch.rand(", "torch.randn(")
    for name, path in modules().items():
        if name.startswith("testing"):  # which disturbs it on purpose
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                if call.startswith(banned):
                    assert "generator=" in call, f"{name}: {call}"


def test_nothing_pickled():
    for name, path in modules().items():
        # Engines and readers hand work to processes of ours, and read nothing pickled from files.
        banned = {"pickle", "shelve", "marshal"} | (
            set() if name in ("study.engines", "data.reading") else {"joblib"}
        )
        assert not imports(ast.parse(path.read_text())) & banned, path
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


def test_one_name_means_one_thing():
    """Public classes and functions of one name in two modules confuse whoever reads the code."""
    places: dict[str, set[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(name)
    # The commands of the command line are the functions of the same name.
    twice = {n: p for n, p in places.items() if len(p) > 1 and not any(x.startswith(("commands.", "cli")) for x in p)}
    assert set(twice) <= SHARED, {n: p for n, p in twice.items() if n not in SHARED}


SHARED = {"study_run", "study_report", "convolution", "norm_relu_pool"}
"""Commands of the study, which the command line calls; layers, which call what was compiled of the same name."""


def test_no_real_data_in_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [f for f in listed if f.endswith((".npz", ".dcm", ".nii", ".nii.gz"))]
