"""The benchmark's loops run, and everything that it measures has a place in the docs."""

import datetime
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from medistill.config import Recipe
from medistill.distil.optimiser import Optimiser
from medistill.testing import small_problem

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "docs"))
import bench
import bench_contention
import bench_loops
import make_speed
import methods_table


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

    settings = {"name": "dm", "iterations": 5, "networks": 2, "filters": 8, "real_batch": 6}
    start = bench_loops.first_images(problem, settings, 0)
    for made in (bench_loops.plain_dm(problem, 5, look), bench_loops.ours(problem, settings, look)):
        assert made.shape == start.shape and torch.isfinite(made).all() and not torch.equal(made, start)
    assert seen == [1, 2, 1, 2]


def test_both_loops_begin_with_the_images_asked_for(problem):
    still = {"name": "dm", "iterations": 1, "networks": 1, "filters": 8, "real_batch": 6}
    first = {start: bench_loops.first_images(problem, {**still, "start": start}, 0) for start in ("noise", "real")}
    assert not torch.equal(first["noise"], first["real"])
    for start, other in (("noise", "real"), ("real", "noise")):
        assert torch.equal(bench_loops.plain_dm(problem, 0, start=start), first[start])
        # One small step moves them by less than they differ.
        ours = bench_loops.ours(problem, {**still, "start": start}, optimiser=Optimiser(learning_rate=1))
        assert (ours - first[start]).square().mean() < (ours - first[other]).square().mean()


def test_gradient_matching_and_training_run(problem):
    settings = {"name": "dc", "filters": 8}
    made = bench_loops.plain_dc(problem, 1, 2, 1)
    assert torch.isfinite(made).all() and not torch.equal(made, bench_loops.first_images(problem, settings, 0))
    data, recipe = bench_loops.random_images(problem), Recipe(min_steps=60, max_steps=60, width=8)
    asked = (data, data, problem.task, problem.normalisation, recipe)
    assert bench_loops.plain_training(*asked, 0) > 0.5, "learns what it was shown"
    scores = bench_loops.our_training(*asked, 2)
    assert len(scores) == 2 and all(0.5 < score <= 1 for score in scores)


def test_a_ratio_is_the_median_of_alternating_rounds(monkeypatch, capsys):
    """By a clock of our own: a round of each that does not count, then both in turn, what comes between in neither."""
    passed, order = 0.0, []
    takes = {"plain": iter([50.0, 6.0, 9.0, 8.0]), "ours": iter([70.0, 2.0, 1.0, 4.0])}

    def work(name):
        nonlocal passed
        order.append(name)
        passed += next(takes[name]) if name in takes else 100.0

    monkeypatch.setattr(bench_loops, "time", SimpleNamespace(perf_counter=lambda: passed))
    row = bench.compared("dm", lambda: work("plain"), lambda: work("ours"), 3, before_ours=lambda: work("between"))
    assert order == ["plain", "ours", *["plain", "between", "ours"] * 3]
    assert row["ratios"] == [2.0, 3.0, 9.0] and row["ratio"] == 3.0, "not 4, the ratio of the medians"
    assert (row["plain_seconds"], row["our_seconds"], row["our_rounds"]) == (8.0, 2.0, [2.0, 1.0, 4.0])
    assert "dm: 3.0 times the plain loop (2.0 to 9.0); 8.00 s against 2.00 s" in capsys.readouterr().out


def test_contention_runs_every_way_and_tells_what_cannot_be_run(monkeypatch, tmp_path, capsys):
    """With a command that takes a moment: alone, beside a busy process, twice at once, and without control groups."""
    begun: list[list[str]] = []

    def begin(words, cache, before=()):
        begun.append([*before, *words])
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(bench_contention, "begin", begin)
    monkeypatch.setattr(bench_contention, "CONTROL_GROUPS", tmp_path / "none")
    (tmp_path / "cache").mkdir()
    seconds = bench_contention.one_round(["evaluate", "p"], tmp_path / "cache")
    one, both, busy, twice = seconds
    assert begun == [["evaluate", "p", "--threads", "1"], *[["evaluate", "p"]] * 4]
    rounds = [{one: 2.0, both: alone, busy: 3.0, twice: 8.0} for alone in (1.0, 0.5, 4.0)]
    told = bench_contention.told("a set, evaluate", rounds)
    assert told.pop("seconds") == rounds
    assert [row["ratios"] for row in told.values()] == [[0.5, 2.0, 4.0], [1.5] * 3, [2.0, 8.0, 16.0]]
    assert [row["ratio"] for row in told.values()] == [2.0, 1.5, 8.0]
    assert "a quota of one CPU over one thread: not measured" in capsys.readouterr().out


def test_what_a_command_says_when_it_fails_ends_the_benchmark(tmp_path):
    process = bench_contention.begin(["train", "p", "--on", "p", "--threads", "0"], tmp_path)
    with pytest.raises(SystemExit, match="allowed: 1 or more"):
        bench_contention.finish([(process, tmp_path)])


def test_what_a_section_finds_is_written_and_gets_into_the_docs(monkeypatch, tmp_path):
    """Each section of the benchmark as the benchmark writes it, beside what was measured before."""
    phantom = "phantom:classes=2,images=20,size=16"
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(make_speed, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "PHANTOM", phantom)
    for name, found in FOUND.items():
        monkeypatch.setitem(bench.SECTIONS, name, lambda _prepared, _given, found=found: found)
    arguments = ["bench.py", "--data", str(tmp_path / "none.npz"), "--note", "a note"]
    monkeypatch.setattr(sys, "argv", [*arguments, "start"])
    bench.main()
    monkeypatch.setattr(sys, "argv", [*arguments, *(name for name in bench.SECTIONS if name != "start")])
    bench.main()
    (written,) = tmp_path.glob("*.json")
    kept = json.loads(written.read_text())
    assert kept.pop("machine") == bench.machine_name()
    assert {name: {key: value[key] for key in FOUND[name]} for name, value in kept.items()} == FOUND
    page = make_speed.speed_page()
    for name in bench.SECTIONS:
        section = page.partition(f"### {name.capitalize()}\n")[2].partition("### ")[0]
        assert SHOWN[name] in section and "a note" in section and datetime.date.today().isoformat() in section


RATIO = {"ratio": 7.5, "ratios": [7.0, 7.5, 8.0]}
FOUND = {
    "ceilings": {"gflops": {"convolution float32": 321.0}},
    "steps": {"dm": {**RATIO, "share_of_float32_convolution_ceiling": 0.55}, "dc": RATIO},
    "quality": {
        "start": "noise",
        "plain": {"steps": 2000, "seconds": 9.0, "balanced_accuracy": 0.871},
        "dm": {"steps": 50, "seconds": 1.0, "balanced_accuracy": 0.882, "ratio": 9.0},
        "the default": {"steps": 200, "seconds": 2.0, "balanced_accuracy": 0.8, "ratio": None},
    },
    "evaluation": {"float32": RATIO},
    "contention": {
        "a set, distill": {"seconds": [], "twice over once": RATIO},
        "a set, evaluate": {"seconds": []},
    },
    "precision": {"a set": {"float32": [0.5, 0.6], "bfloat16": [0.6, 0.8]}},
    "start": {"medistill --help": {"median": 0.34}},
    "memory": {"plain": 987.0, "ours": 654.0},
    "estimates": {
        "a set --set labels.recipe.min_steps=8": {"estimated": 110.0, "measured": 100.0},
        "another": {"estimated": 9.0, "measured": 10.0, "estimated_seconds": 60.0, "measured_seconds": 50.0},
    },
    "large": {"a large set": {"estimated": 3000.0, "measured": 2900.0, "seconds": 77.0, "options": ""}},
}  # fmt: skip
SHOWN = {
    "ceilings": "convolution float32 321 GFLOP/s", "steps": "| dm | 7.5 (7.0 to 8.0) | 55% |",
    "quality": "0.871 on validation images after 2000 steps (start: noise", "evaluation": "in float32 7.5 (7.0 to 8.0) times",
    "contention": "| command | twice over once |\n|---|---|\n| a set, distill | 7.50 (7.00 to 8.00) |\n| a set, evaluate | - |",
    "precision": "| a set | 2 | 0.550 ± 0.071 | 0.700 ± 0.141 | +0.150 ± 0.050 |", "start": "answers in 0.34 s",
    "memory": "takes 654 MB, the plain loop 987 MB", "estimates": "| 110 | 100 | +10% | - | - | - |\n| `another` | 9 | 10 | -10% | 60 | 50 | +20% |",
    "large": "| a large set | 3000 | 2900 | 77 | all |",
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "kept", "again"),
    [
        ("default", {"networks": 3}, True),  # of an earlier version, which began with real images
        ("default", {"start": "noise"}, False),
        ("dm", {"networks": 3}, True),
        ("random", {"networks": 3}, False),
    ],
)
def test_what_an_earlier_version_distilled_is_measured_again(tmp_path, method, kept, again):
    path = tmp_path / "cell.json"
    assert not methods_table.is_measured(path, method)
    path.write_text(json.dumps(kept))
    assert methods_table.is_measured(path, method) is not again


def test_figures_of_an_earlier_version_are_marked(tmp_path):
    import make_results

    old, new = tmp_path / "old.json", tmp_path / "new.json"
    scores = {"arms": {"random_stored_alike": {}}, "recovery_above_chance": {}}
    old.write_text(json.dumps({"nets": {"mlp": scores}, **scores, "networks": 2, "recipe": {"batch": 8}}))
    new.write_text(json.dumps({"start": "noise", "repeats": 2, "recipe": {"batch_size": 8}}))
    found = make_results.read(old)
    assert (found["start"], found["repeats"], found["recipe"]) == ("real", 2, {"batch_size": 8})
    for each in (found, found["architectures"]["mlp"]):
        assert each["arms"] == {"random_matched": {}} and each["recovery_above_baseline"] == {}
    assert make_results.read(new) == json.loads(new.read_text())
