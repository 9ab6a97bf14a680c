"""The benchmark's loops run, and everything that it measures has a place in the docs."""

import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.keys import Key
from medistill.nets.training import Statistics
from medistill.testing import small_problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench
import bench_loops


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(bench_loops, "FILTERS", 8)
    monkeypatch.setattr(bench_loops, "REAL_BATCH", 6)
    return small_problem(2, factor=2)


def test_both_loops_learn_images_and_stop_when_told(problem):
    seen = []

    def look(step, images):
        seen.append(step)
        return step < 2

    start = problem.encode(problem.random_images(Key(0)))
    settings = {"name": "dm", "iterations": 5, "networks": 2, "filters": 8, "real_batch": 6}
    for made in (bench_loops.plain_dm(problem, 5, look), bench_loops.ours(problem, settings, look)):
        assert made.shape == start.shape and torch.isfinite(made).all() and not torch.equal(made, start)
    assert seen == [1, 2, 1, 2]


def test_gradient_matching_and_training_run(problem):
    bench_loops.plain_dc(problem, 1, 2, 1)
    images = problem.quantise(problem.random_images(Key(0))).numpy()
    part, recipe = Part(images, problem.labels.numpy()), Recipe(least_steps=3, most_steps=3, width=8)
    statistics = Statistics(problem.mean, problem.std, problem.flips)
    assert bench_loops.plain_training(part, part, statistics, recipe, 3, 0) > 0.4, "learns what it was shown"
    scores = bench_loops.our_training(part, part, statistics, recipe, 3, 2)
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


def test_a_ratio_is_of_alternating_rounds(capsys):
    row = bench.compared("sleep", lambda: torch.ones(400, 400) @ torch.ones(400, 400), lambda: None, rounds=3)
    assert len(row["ratios"]) == 3 and row["ratio"] > 1 and "times the plain loop" in capsys.readouterr().out


def test_every_section_is_written_into_the_docs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_results

    assert list(make_results.SECTIONS) == list(bench.SECTIONS)
