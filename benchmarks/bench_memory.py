"""The sections of ``bench.py`` on memory beside the plain loop, and on memory and time beside what was announced."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_loops as loops
import numpy as np

from medistill.data.preprocess import PreparedDataset
from medistill.files import CACHE_VARIABLE

ONE_STEP = " --set method.iterations=1 --set method.real_batch=64"
TEACHER_STEPS = " --set labels.recipe.min_steps={0} --set labels.recipe.max_steps={0}"
ESTIMATED = (
    ("breastmnist", "--method dm --ipc 10 --set method.iterations=400"),
    ("bloodcells_28", "--method dm --ipc 10 --set method.iterations=100"),
    ("bloodcells_28", "--method dm --ipc 10 --factor 2 --set method.iterations=100"),
    ("bloodcells_28", "--method dm --ipc 10 --factor 2 --memory-limit 800MB --set method.iterations=60"),
    ("bloodcells_28", "--method dm --ipc 50 --set method.iterations=60"),
    ("bloodcells_28", "--method dc --preset quick --ipc 10 --set method.iterations=20"),
    ("bloodcells_28", "--method ncfm --ipc 10 --set method.iterations=60"),
    ("bloodcells_28", "--method frepo --ipc 10 --set method.iterations=60"),
    ("breastmnist", "--method mtt --preset quick --ipc 10 --set method.iterations=40 --set method.experts=2"),
    ("pneumoniamnist", "--method dsa --preset quick --ipc 10 --set method.iterations=20"),
    ("bloodcells_28", "--method dm --ipc 10 --size 64 --set method.iterations=60"),
    ("bloodcells_28", "--ipc 10 --set method.iterations=100" + TEACHER_STEPS.format(300)),
    ("ct_kidney4_64", "--ipc 10 --set method.iterations=100" + TEACHER_STEPS.format(300)),
    ("oct_dme_128", "--ipc 10 --set method.iterations=100" + TEACHER_STEPS.format(300)),
    ("pneumoniamnist", "--method k-means --ipc 10"),
    ("breastmnist", "--method dm --ipc 10 --factor 2 --size 128 --memory-limit 1GB" + ONE_STEP),
)
"""What estimates are compared with what was measured on: set and options of ``distill``. The last two take seconds,
so that only memory is told."""

TOLD_MB, TOLD_TIME = r"takes about (\d+) MB", r"takes about (?:(\d+) min )?(\d+) s\b"


def distilled(data: Path, folder: Path, options: str) -> tuple[float, float, dict[str, Any]]:
    """Megabytes and seconds that ``distill`` announced, and what it says that it cost, with an empty cache."""
    words = ["distill", str(data), "--out", str(folder / "p"), "--json", *options.split()]
    ended = subprocess.run(
        [sys.executable, "-m", "medistill.cli", *words],
        env={**os.environ, CACHE_VARIABLE: str(folder)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    announced = re.search(TOLD_MB, ended.stderr)
    assert announced is not None
    seconds = sum(60 * int(minutes or 0) + int(rest) for minutes, rest in re.findall(TOLD_TIME, ended.stderr))
    return float(announced[1]), float(seconds), json.loads(ended.stdout)["cost"]


def estimates(_prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Estimated against measured peak memory, in megabytes, and time, in seconds."""
    found = {}
    for name, options in ESTIMATED:
        if (file := loops.set_beside(given.data, name)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            guess, seconds, cost = distilled(file, Path(folder), options)
        peak, took = cost["peak_memory_mb"], cost["seconds"]
        row = {"estimated": guess, "measured": peak}
        said = f"{name} {options}: estimated {guess:.0f}, measured {peak:.0f} MB ({guess / peak - 1:+.0%})"
        if seconds:
            row |= {"estimated_seconds": seconds, "measured_seconds": took}
            said += f"; estimated {seconds:.0f}, measured {took:.0f} s ({seconds / took - 1:+.0%})"
        found[f"{name} {options}"] = row
        loops.say(said)
    return found


def memory(_prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Peak megabytes of a few steps, each in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, {folder!r}); import bench_loops as loops; "
        "from medistill.runtime import peak_memory_mb, prepare_torch; prepare_torch(); "
        "from medistill.data.load import load; from medistill.data.preprocess import prepare; "
        "from medistill.distil.problem import make_problem; "
        "problem = make_problem(prepare(load({data!r})), 10, None); {work}; "
        "print(peak_memory_mb())"
    )
    found = {}
    for name, work in (
        ("plain", "loops.plain_dm(problem, 4)"),
        ("ours", f"loops.ours(problem, { ({**loops.DM, 'iterations': 4})!r})"),
    ):
        words = [
            sys.executable,
            "-c",
            code.format(folder=str(Path(__file__).parent), data=given.source, work=work),
        ]
        found[name] = float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    loops.say(f"peak memory of dm: {found['plain'] / found['ours']:.2f} times less ({found['ours']:.0f} MB)")
    return found


FEW_STEPS = ONE_STEP + TEACHER_STEPS.format(8)
LARGE_SETS = (
    ("of TissueMNIST's size", (165_466, 28, 28), 8, ""),
    ("of PathMNIST's at 224 pixels, the first 20,000", (20_000, 224, 224, 3), 9, FEW_STEPS),
)
"""Made-up sets: what they are like, shape of the training images, classes, options. On two cores the default takes
hours at 224 pixels, so there all its parts run, but few steps of each; its memory is that of the whole."""


def large(_prepared: PreparedDataset, _given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and seconds of the default at ten images per class, with a limit of 4 GB."""
    found = {}
    for name, shape, classes, options in LARGE_SETS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "made-up.npz"
            write_made_up(source, shape, classes)
            try:
                guess, _, cost = distilled(source, Path(folder), f"--ipc 10 --memory-limit 4GB{options}")
            except subprocess.CalledProcessError as problem:
                found[name] = {"refused": problem.stderr.strip().splitlines()[-1], "options": options.strip()}
                loops.say(f"{name}: {found[name]['refused']}")
                continue
        measured = {"measured": cost["peak_memory_mb"], "seconds": cost["seconds"]}
        found[name] = {"estimated": guess, **measured, "options": options.strip()}
        loops.say(
            f"{name}: estimated {guess:.0f} MB, measured {cost['peak_memory_mb']:.0f} MB, {cost['seconds']:.0f} s"
        )
    return found


def write_made_up(path: Path, shape: tuple[int, ...], classes: int) -> None:
    """An .npz in MedMNIST layout whose classes differ in brightness, under noise."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", shape[0]), ("val", 500), ("test", 500)):
        labels = draw.integers(0, classes, count)
        means = np.linspace(60, 180, classes)[labels].reshape(-1, *[1] * (len(shape) - 1))
        images = np.empty((count, *shape[1:]), np.uint8)
        for start in range(0, count, 500):
            rows = slice(start, start + 500)
            noise = draw.integers(-40, 40, images[rows].shape, dtype=np.int16)
            images[rows] = (means[rows] + noise).clip(0, 255)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.reshape(-1, 1)}
    np.savez(path, **arrays)
