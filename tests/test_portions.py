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
from medistill.data.image import Normalisation
from medistill.data.preprocess import TensorSplit
from medistill.evaluation import workers
from medistill.evaluation.jobs import Job, do_job, run_prefix
from medistill.evaluation.portions import Portion, portions, seconds_of
from medistill.keys import Key
from medistill.nets.training import AdamW
from medistill.tasks.task import make_task, numbered
from reference.training import steps

SEEN = Normalisation((0.5,), (0.25,), "both")
RECIPE = Recipe(width=8, batch_size=8, epochs=1, min_steps=9, max_steps=9)


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


def splits(images=20, kind="multi-class"):
    draw = np.random.default_rng(0)
    pixels, task = draw.integers(0, 256, (images, 1, 16, 16), dtype=np.uint8), numbered(kind, 3)
    data = TensorSplit(pixels, task.targets(np.arange(images) % 3))
    return {data.digest: data}


def jobs_of(known, count, architecture="convnet", kind="multi-class", keep=False):
    (digest,) = known
    return [
        Job(digest, digest, digest, SEEN, kind, 3, RECIPE, 4, 0, index, architecture, keep) for index in range(count)
    ]


@pytest.mark.parametrize(
    ("architecture", "kind", "until"),
    [
        *(("convnet", kind, until) for kind in ("multi-class", "multi-label") for until in (0, 4, 9)),
        *(("convnet-bn", "ordinal", until) for until in (0, 4, 9)),
        ("vit", "multi-class", 4),
    ],
)
def test_a_network_that_another_goes_on_with_is_the_same(architecture, kind, until):
    known = splits(kind=kind)
    (job,) = jobs_of(known, 1, architecture, kind)
    told = []
    expected = do_job(job, known, lambda _: None)
    kept = load(save(run_prefix(job, known, told.append, until)))
    assert len(told) == until
    found = do_job(job, known, told.append, begun={name: tensor.clone() for name, tensor in kept.items()})
    assert sum(told) == job.work(known) and len(told) == 9
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.curve, expected.curve)
    other = do_job(replace(job, seed=Key(1).seed), known, lambda _: None)
    assert (other.probabilities != expected.probabilities).any()


def test_a_job_is_known_by_what_determines_its_result():
    (job,) = jobs_of(splits(), 1, keep=True)
    assert job.task == make_task("multi-class", ("0", "1", "2"))
    others = [
        replace(job, kind="ordinal"),
        replace(job, seed=1),
        replace(job, test="another"),
        replace(job, outputs=4),
    ]
    assert len({job.identity, *(other.identity for other in others)}) == 5
    same = [replace(job, test="another").network_identity, replace(job, keep=False).network_identity]
    assert same == [job.network_identity] * 2 != [others[0].network_identity] * 2


def test_a_training_step_is_that_of_torchs_optimiser_and_schedule():
    recipe = Recipe(learning_rate=0.01)
    draw = torch.Generator().manual_seed(0)
    start = {"weight": torch.randn(4, 3, generator=draw), "bias": torch.randn(4, generator=draw)}
    ours, theirs = ({n: t.clone().requires_grad_(True) for n, t in start.items()} for _ in range(2))
    seen = [torch.randn(5, 3, generator=draw) for _ in range(7)]
    losses = [lambda p, x=x: functional.linear(x, p["weight"], p["bias"]).square().mean() for x in seen]
    optimiser = AdamW(ours, recipe, len(losses))
    for loss, wanted in zip(losses, steps(theirs, recipe, losses), strict=True):
        optimiser.step([loss(ours)])
        for name, tensor in ours.items():
            assert torch.equal(tensor, wanted[name])


def test_training_loads_no_compiler():
    code = (
        "import sys; from medistill.nets.training import AdamW; from medistill.config import Recipe; import torch\n"
    )
    code += "p = {'w': torch.ones(2, requires_grad=True)}; AdamW(p, Recipe(), 2).step([p['w'].sum()])\n"
    code += "sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("architecture", ["convnet", "convnet-bn", "resnet18"])
def test_workers_that_share_a_network_give_its_bytes(architecture, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    known, expected, begun = splits(), {}, []
    jobs = jobs_of(known, 3, architecture)
    workers.run_all(jobs, known, lambda _: None, expected.__setitem__, max_workers=1)
    assert len(expected) == 3
    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    monkeypatch.setattr(workers, "run_prefix", lambda job, *rest: begun.append(job) or run_prefix(job, *rest))
    for keep, portions_begun in ((False, 1), (True, 1), (True, 0)):  # the last time they lie in the cache
        begun.clear()
        told, found = [], {}
        workers.run_all([replace(job, keep=keep) for job in jobs], known, told.append, found.__setitem__)
        assert len(begun) == portions_begun, "one network is done in two portions"
        for job, run in expected.items():
            other = found[replace(job, keep=keep)]
            np.testing.assert_array_equal(other.probabilities, run.probabilities)
            np.testing.assert_array_equal(other.curve[-1], run.curve[-1])
            assert len(other.curve) == (len(run.curve) if sum(told) else 1), "cached, only the end is known"
        assert sum(told) in (0, sum(job.work(known) for job in expected))
    assert sum(told) == 0


def test_a_failure_in_a_first_portion_ends_the_work(monkeypatch):
    """The worker that waits for the portion neither waits on nor begins anything else."""
    finished = []

    def fails(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(workers, "usable_cores", lambda: 2)
    monkeypatch.setattr(workers, "run_prefix", fails)
    with pytest.raises(MemoryError, match="no room"):
        workers.run_all(jobs_of(splits(), 3), splits(), lambda _: None, lambda job, _: finished.append(job))
    assert len(finished) < 3


def test_whoever_is_left_alone_is_sooner_done():
    queue = portions([4.0, 1.0], 2)
    assert seconds_of(queue, [4.0, 1.0], 2) == 4
    assert seconds_of(queue, [4.0, 1.0], 2, alone=0.5) == 1 + 3 * 0.5
    assert seconds_of(portions([4.0], 1), [4.0], 1, alone=0.5) == 2
