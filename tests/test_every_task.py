"""A phantom of every task, and of volumes, goes through all commands."""

import json

import numpy as np
import pytest

from conftest import TINY_SETS
from medistill.tasks.task import make_task

SOURCES = {
    "binary": "phantom:classes=2,images=40,size=16",
    "multi-class": "phantom:classes=3,images=36,size=16",
    "ordinal": "phantom:task=grades,images=40,size=16",
    "multi-label": "phantom:task=findings,classes=3,images=60,size=16",
    "volumes": "phantom:classes=3,images=36,size=16,depth=16",
}
QUICK = [
    "method.iterations=3", "method.networks=2", "method.filters=8", "method.real_batch=8", "labels.teachers=1",
    "labels.recipe.min_steps=5", "labels.recipe.max_steps=5", "labels.recipe.width=8",
]  # fmt: skip


def settings(words):
    return [word for setting in words for word in ("--set", setting)]


@pytest.fixture(scope="module", params=SOURCES)
def case(request):
    return request.param, SOURCES[request.param]


def test_all_commands(case, cli, tmp_path):
    kind, source = case
    kind = "multi-class" if kind == "volumes" else kind
    package = tmp_path / "package"

    def run(*words):
        status, out, err = cli(*words)
        assert status == 0, err
        return out

    checked = json.loads(run("check", source, "--ipc", 2, "--json"))
    task = make_task(checked["task"], checked["classes"])
    assert task.kind == kind and checked["usable"]
    made = json.loads(run("distill", source, "--ipc", 2, "--out", package, "--json", *settings(QUICK)))
    assert not made["contains_real_images"] and made["audits"][0]["name"] == "resemblance"
    assert len(made["per_stratum"]) == len(task.strata)
    assert "unaltered" in run("verify", package)
    result = json.loads(run("evaluate", package, "--on", source, "--attach", "--json", *settings(TINY_SETS)))
    assert set(result["arms"]) == {"distilled", "random", "random_matched", "full", "full_balanced"}
    for scores in result["arms"].values():
        assert list(scores) == list(task.metric_names)
    assert result["primary"] == task.primary and set(result["majority_baseline"]) == set(task.metric_names)
    run("report", package, "--on", source, "--out", tmp_path / "report.html", *settings(TINY_SETS))
    page = (tmp_path / "report.html").read_text()
    assert all(metric.title in page for metric in task.metrics) and "pairs most alike" in page
    assert ("Confusion matrix" in page) == task.exclusive
    trained = json.loads(run("train", package, "--on", source, "--json", *settings(TINY_SETS)))
    assert set(trained["metrics"]) == set(task.metric_names)
    assert run("train", package, "--on", source, *settings(TINY_SETS)).count("recall of") == task.outputs
    card = (package / "README.md").read_text()
    assert all(metric.title in card for metric in task.metrics)


def test_the_card_s_own_code_trains(case, cli, tmp_path):
    """What a recipient without this tool runs, as it stands on the card."""
    _, source = case
    package = tmp_path / "package"
    assert cli("distill", source, "--ipc", 2, "--out", package, *settings(QUICK))[0] == 0
    card = (package / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("range(300)", "range(2)")
    here: dict = {}
    code = code.replace('"distilled.npz"', repr(str(package / "distilled.npz")))
    exec(code, here)
    assert here["model"](here["x"]).shape == (
        len(here["x"]),
        here["y"].shape[-1] if here["y"].ndim > 1 else len(np.unique(here["y"])),
    )
    assert np.isfinite(here["model"](here["x"]).detach().numpy()).all()


def test_methods_that_are_not_made_for_a_task_say_so_in_one_line(cli, tmp_path, monkeypatch):
    from dataclasses import replace

    from medistill.distil.methods.dm import DM

    monkeypatch.setattr(DM, "info", replace(DM.info, tasks=("binary", "multi-class"), dimensions=(2,)))
    for source, reason in ((SOURCES["multi-label"], "multi-label task"), (SOURCES["volumes"], "3 dimensions")):
        status, _, err = cli("distill", source, "--method", "dm", "--ipc", 2, "--out", tmp_path / "p")
        assert status == 2 and err.count("\n") == 1 and reason in err and not (tmp_path / "p").exists()
    listed = json.loads(cli("methods", "--json")[1])["methods"]
    assert next(m for m in listed if m["name"] == "dm")["tasks"] == ["binary", "multi-class"]


def test_grades_are_what_somebody_says_they_are(cli, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (30, 16, 16), dtype=np.uint8), np.arange(30) % 3
    arrays = {f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez(tmp_path / "graded.npz", **arrays, task="ordinal")
    kinds = {
        ("plain.npz",): "multi-class", ("plain.npz", "--task", "ordinal"): "ordinal", ("graded.npz",): "ordinal",
        ("plain.npz", "--set", "data.task=ordinal"): "ordinal",
    }  # fmt: skip
    for (name, *options), kind in kinds.items():
        status, out, err = cli("check", tmp_path / name, *options, "--json")
        assert status == 0, err
        assert json.loads(out)["task"] == kind
    status, _, err = cli("check", tmp_path / "plain.npz", "--task", "graded")
    assert status == 2 and "unknown task 'graded'" in err


def test_findings_are_split_by_patient_and_in_proportion(tmp_path):
    from medistill.data.load import load

    rng = np.random.default_rng(0)
    labels = (rng.random((400, 4)) < (0.5, 0.3, 0.1, 0.04)).astype(np.uint8)
    images = rng.integers(0, 255, (400, 16, 16), dtype=np.uint8)
    for patients in (None, np.array([f"p{i // 3}" for i in range(400)])):
        named = {} if patients is None else {"train_patients": patients}
        np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, **named)
        dataset = load(tmp_path / "x.npz")
        assert set(dataset.splits) == {"train", "val", "test"}
        if patients is not None:
            owners = [set(split.patients) for split in dataset.splits.values()]
            assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
        whole = np.array(dataset.task.counts(labels))
        for name, share in (("test", 0.15), ("val", 0.15 * 0.85)):
            found = np.array(dataset.counts(name))
            # The rarest finding is what a random split would miss: it has its share, but for the images of others.
            assert (found >= np.floor(0.6 * share * whole)).all(), (name, found, whole)
            assert (found <= np.ceil(1.9 * share * whole) + 3).all(), (name, found, whole)
        assert (np.array(dataset.counts("train")) > 0).all()
