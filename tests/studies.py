"""Small studies for tests, and records of runs that nobody did."""

import dataclasses

import yaml

from medistill.prediction import features
from medistill.store import Record
from medistill.study import engines, work

SMALL = "phantom:classes=3,images=36,size=16"
EVALUATE = {
    "recipe": {"least_steps": 6, "most_steps": 8, "width": 8, "batch": 16},
    "networks": 2, "random_draws": 2, "bootstrap": 100,
}  # fmt: skip
STUDY = {
    "name": "tiny", "data": [{"source": SMALL, "name": "a"}, {"source": SMALL + ",site=b", "name": "b"}],
    "methods": ["random", "herding"], "ipc": [2], "evaluate": EVALUATE, "features": False,
}  # fmt: skip


def write(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


def record(**changes):
    asked = {
        "method": {"method": changes.get("method", "dm")}, "evaluate": {"recipe": {}, "nets": ["convnet"]},
        "determined": {},
    }  # fmt: skip
    base = Record(
        "i", "s", "distilled", "a", "g", "d", "dm", 10, None, 0, asked, "done", None, 1, 2.0,
        "2026-01-01T00:00:00+00:00", "m", "0", {},
    )  # fmt: skip
    if "specification" in changes:
        changes["specification"] = {**asked, **changes["specification"]}
    return dataclasses.replace(base, **changes)


def described(found):
    """What a result says of the features of its data."""
    return {"features": found, "features_version": features.VERSION}


def in_this_process(monkeypatch):
    """Runs without processes of their own; what they measure is the same."""

    def do(identity, specification, threads):
        return {**work._outcome("done", result=work.perform(specification)), "seconds": 1.0}

    def execute(runs, engine, address, processes, threads, done):
        for run in runs:
            done(run, do(run.identity, run.specification, threads))

    monkeypatch.setattr(engines, "execute", execute)
    train_features_shortly(monkeypatch)


def train_features_shortly(monkeypatch):
    """Networks of features that are trained for steps instead of seconds."""
    recipe = features.SHORT.model_copy(update={"least_steps": 6, "most_steps": 8, "width": 8})
    for name in ("SHORT", "LONG"):
        monkeypatch.setattr(features, name, recipe)
