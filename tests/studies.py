"""Small studies for tests, and records and examples of runs that nobody did."""

import dataclasses
import math
import os
import sys

import numpy as np
import yaml

from medistill.prediction import features
from medistill.prediction.indicator import Example, from_above_chance
from medistill.records.records import RunRecord
from medistill.study import engines, work

SMALL = "phantom:classes=3,images=36,size=16"
EVALUATE = {
    "recipe": {"min_steps": 6, "max_steps": 8, "width": 8, "batch_size": 16},
    "repeats": 2, "random_draws": 2, "bootstrap": 100,
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
        "method": {"method": changes.get("method", "dm")}, "evaluate": {"recipe": {}, "architectures": ["convnet"]},
        "determined": {},
    }  # fmt: skip
    base = RunRecord(
        "i", "s", "distilled", "a", "g", "d", "dm", 10, None, 0, asked, "done", None, 1, 2.0,
        "2026-01-01T00:00:00+00:00", "m", "0", {},
    )  # fmt: skip
    if "specification" in changes:
        changes["specification"] = {**asked, **changes["specification"]}
    return dataclasses.replace(base, **changes)


def described(found):
    """What a result says of the features of its data."""
    return {"features": found, "features_version": features.VERSION}


def outcome(status, **values):
    """What a worker tells of a run."""
    return {
        "status": status, "error": None, "result": None, "machine": "m", "finished": "2026-01-01T00:00:00+00:00",
        "medistill": "0", "starts": 1, "seconds": 1.0, **values,
    }  # fmt: skip


def begin_processes_with(code, folder, monkeypatch):
    """Every Python process that is started from now on runs this code first."""
    place = folder / "begin with"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(place)  # processes of runs import from where this one does
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def in_this_process(monkeypatch):
    """Runs without processes of their own; what they measure is the same."""

    def execute(runs, engine, address, processes, threads, done):
        for run in runs:
            done(run, outcome("done", result=work.perform(run.specification)))

    monkeypatch.setattr(engines, "execute", execute)
    train_features_shortly(monkeypatch)


def train_features_shortly(monkeypatch):
    """Networks of features that are trained for steps instead of seconds."""
    recipe = features.SHORT.model_copy(update={"min_steps": 6, "max_steps": 8, "width": 8})
    for name in ("SHORT", "LONG"):
        monkeypatch.setattr(features, name, recipe)


OFFSET = {"random": 0.0, "dm": 0.4, "default": 0.8}
"""What methods add to random images, as a logit."""


def law(groups=8, sizes=(1, 10, 50), noise=0.02, seed=0):
    """Examples in which a method's logit is that of random images plus its offset, half of which its images show."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(groups):
        classes = int(rng.integers(2, 9))
        chance, hard = 1 / classes, rng.normal(0.5, 0.7)
        for ipc in sizes:
            z = hard + 0.4 * math.log(ipc)

            def level(shift, at=0.5, z=z):
                return from_above_chance(z + shift, at)

            known = {"classes": float(classes), "images": float(ipc * classes), "training_images": 2000.0}
            known |= {"majority": chance, "share": 0.01, "pixels": 784.0}
            for kind, shift in (("random", 0.0), ("all", 2.0)):
                known |= reached_by(kind, level, chance, shift)
            for method, offset in OFFSET.items():
                shift = offset + noise * rng.normal()
                own = known | reached_by("chosen", level, chance, offset / 2)
                reached, random = level(shift, chance), level(0.0, chance)
                values = {
                    "balanced_accuracy": reached, "auroc": level(shift), "gain": reached - random,
                    "recovery": reached / level(2.0, chance),
                }  # fmt: skip
                arms = {
                    "random images": {"balanced_accuracy": random, "auroc": level(0.0)},
                    "all images": {"balanced_accuracy": level(2.0, chance), "auroc": level(2.0)},
                }
                found.append(Example(f"g{group}", f"d{group}", method, {}, own, values, arms))
    return found


def reached_by(kind, level, chance, shift):
    """What small networks reached on some kind of images."""
    return {f"{kind}.balanced_accuracy": level(shift, chance), f"{kind}.auroc": level(shift)}
