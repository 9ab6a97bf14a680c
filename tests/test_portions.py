"""Who trains what: nothing waits that could be done, and what is cut in two comes out the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch.nn import functional

from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.evaluation import workers
from medistill.evaluation.cache import part_digest
from medistill.evaluation.jobs import Job, begin, do
from medistill.evaluation.portions import Portion, portions, seconds_of
from medistill.keys import Key
from medistill.nets.training import Descent, Statistics, one_cycle

SEEN = Statistics((0.5,), (0.25,), "both")
RECIPE = Recipe(width=8, batch=8, epochs=1, least_steps=9, most_steps=9)


@pytest.mark.parametrize(("jobs", "cores"), [(5, 2), (3, 2), (5, 4), (4, 3), (7, 3)])
def test_equal_jobs_leave_no_core_idle(jobs, cores):
    queue = portions([1.0] * jobs, cores)
    assert seconds_of(queue, [1.0] * jobs, cores) == pytest.approx(jobs / cores)


def test_five_networks_on_two_cores_are_two_rounds_and_a_half():
    assert portions([1.0] * 5, 2) == [
        Portion(2, end=0.5), Portion(0), Portion(1), Portion(3), Portion(4), Portion(2, start=0.5)
    ]  # fmt: skip


def test_nothing_is_cut_where_whole_jobs_fill_the_cores():
    assert portions([1.0] * 4, 2) == [Portion(i) for i in range(4)]
    assert portions([4.0, 1.0, 1.0], 2) == [Portion(0), Portion(1), Portion(2)]  # the longest decides alone
    many = [0.1] * 20 + [1.0] * 5
    assert all(p.end - p.start == 1 for p in portions(many, 2))
    assert portions([3.0, 1.0], 1) == [Portion(0), Portion(1)]


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=12), st.integers(1, 6))
def test_every_job_is_done_once_and_never_later_than_whole_jobs_would_be(efforts, cores):
    queue = portions(efforts, cores)
    done = dict.fromkeys(range(len(efforts)), 0.0)
    for portion in queue:
        assert portion.start == done[portion.index], "its beginning comes first"
        done[portion.index] = portion.end
    assert set(done.values()) == {1.0}
    assert len(queue) < len(efforts) + cores
    whole = [Portion(i) for i in sorted(range(len(efforts)), key=lambda i: -efforts[i])]
    took, bound = seconds_of(queue, efforts, cores), max(sum(efforts) / cores, max(efforts))
    assert bound * (1 - 1e-9) <= took <= seconds_of(whole, efforts, cores) * (1 + 1e-9)


def parts(images=20):
    draw = np.random.default_rng(0)
    part = Part(draw.integers(0, 256, (images, 1, 16, 16), dtype=np.uint8), np.arange(images, dtype=np.int64) % 3)
    return {part_digest(part): part}


def jobs_of(known, count, network="convnet", keep=False):
    (digest,) = known
    return [Job(digest, digest, digest, SEEN, 3, RECIPE, 4, 0, index, network, keep) for index in range(count)]


@pytest.mark.parametrize("network", ["convnet", "convnet-bn", "vit"])
@pytest.mark.parametrize("until", [0, 4, 9])
def test_a_network_that_another_goes_on_with_is_the_same(network, until):
    known = parts()
    (job,) = jobs_of(known, 1, network)
    told = []
    expected = do(job, known, lambda _: None)
    kept = load(save(begin(job, known, told.append, until)))
    assert len(told) == until
    found = do(job, known, told.append, begun={name: tensor.clone() for name, tensor in kept.items()})
    assert sum(told) == job.work(known) and len(told) == 9
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.curve, expected.curve)
    other = do(replace(job, seed=Key(1).seed), known, lambda _: None)
    assert (other.probabilities != expected.probabilities).any()


def test_a_training_step_is_that_of_torchs_optimiser_and_schedule():
    recipe, steps = Recipe(learning_rate=0.01), 7
    draw = torch.Generator().manual_seed(0)
    start = {"weight": torch.randn(4, 3, generator=draw), "bias": torch.randn(4, generator=draw)}
    ours, theirs = ({n: t.clone().requires_grad_(True) for n, t in start.items()} for _ in range(2))
    descent = Descent(ours, recipe, steps)
    optimiser = torch.optim.AdamW(theirs.values(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps))
    for _ in range(steps):
        x = torch.randn(5, 3, generator=draw)

        def loss(p, x=x):
            return functional.linear(x, p["weight"], p["bias"]).square().mean()

        descent.step([loss(ours)])
        optimiser.zero_grad()
        loss(theirs).backward()
        optimiser.step()
        schedule.step()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name])


def test_training_loads_no_compiler():
    code = (
        "import sys; from medistill.nets.training import Descent; from medistill.config import Recipe; import torch\n"
    )
    code += "p = {'w': torch.ones(2, requires_grad=True)}; Descent(p, Recipe(), 2).step([p['w'].sum()])\n"
    code += "sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_that_share_a_network_give_its_bytes(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(workers, "SMALL", 0)
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    known = parts()
    with workers._single_thread():
        expected = {job: do(job, known, lambda _: None) for job in jobs_of(known, 3)}
    cut = []

    class Counted(workers._Task):
        def __init__(self, *given):
            cut.append(given)
            super().__init__(*given)

    monkeypatch.setattr(workers, "_Task", Counted)
    for keep in (False, True, True):  # the last time they lie in the cache
        cut.clear()
        told, found = [], {}
        workers.run_all(jobs_of(known, 3, keep=keep), known, told.append, found.__setitem__)
        assert sum(len(task) == 3 for task in cut) == 2, "one network is done in two portions"
        for job, run in expected.items():
            other = found[replace(job, keep=keep)]
            np.testing.assert_array_equal(other.probabilities, run.probabilities)
            np.testing.assert_array_equal(other.curve[-1], run.curve[-1])
            assert len(other.curve) == (len(run.curve) if sum(told) else 1), "cached, only the end is known"
        assert sum(told) in (0, sum(job.work(known) for job in expected))
    assert sum(told) == 0


def test_a_worker_that_dies_in_a_first_portion_ends_the_work(monkeypatch):
    monkeypatch.setattr(workers, "SMALL", 0)
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    hand_out = workers._Team._one

    def killed(self, process, task):
        if task.first:
            process.kill()
        hand_out(self, process, task)

    monkeypatch.setattr(workers._Team, "_one", killed)
    with pytest.raises(workers.WorkerError, match="ended with status -9"):
        workers.run_all(jobs_of(parts(), 3), parts(), lambda _: None, lambda *_: None)
