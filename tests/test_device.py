"""Devices other than the CPU.

No GPU is needed for most of it. ``meta`` tensors have no values: whatever mixes devices or asks for a value, for
which a GPU would have to be waited for, is an error there. Stacked networks and gradients are compared on the CPU.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medistill
from medistill.cli import app
from medistill.config import Recipe
from medistill.data.preprocess import Part
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.evaluation import stacked, workers
from medistill.evaluation.cache import part_digest
from medistill.evaluation.jobs import Job, do
from medistill.evaluation.stacked import do_stacked
from medistill.keys import Key
from medistill.nets.pixels import Pixels
from medistill.nets.stacked import taken_apart, train_stacked
from medistill.nets.training import Statistics, predict, train
from medistill.nets.zoo import make_network
from medistill.testing import small_problem

META = torch.device("meta")
LEARNING = {
    "dm": {"iterations": 12, "networks": 3, "real_batch": 7, "filters": 6},
    "ncfm": {"iterations": 12, "networks": 3, "real_batch": 7, "filters": 6, "frequencies": 9},
    "dc": {"iterations": 2, "outer_loops": 6, "inner_loops": 1, "real_batch": 7, "filters": 6},
    "dsa": {"iterations": 2, "outer_loops": 6, "inner_loops": 1, "real_batch": 7, "filters": 6},
    "frepo": {"iterations": 12, "networks": 2, "real_batch": 9, "filters": 6, "longest_training": 3},
    "mtt": {"iterations": 11, "experts": 1, "expert_epochs": 2, "span": 1, "latest_start": 1, "student_steps": 2,
            "filters": 6},
}  # fmt: skip
RECIPE = Recipe(least_steps=25, steps_per_doubling=0, epochs=0.1, batch=5, width=6)
SEEN = Statistics((0.5,), (0.25,), "horizontal")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


def distilled(problem, name, **more):
    method, key, told = make_method({"name": name, **LEARNING[name], **more}), Key(3), []
    method.prepare(problem, key, lambda _: None)
    start = loop.start(method, problem, key)
    state = loop.run(method, problem, key, start, lambda state, losses: told.append((state.step, losses)))
    return state.to("cpu"), told


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_no_step_waits_or_mixes_devices(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    problem, key = small_problem(2), Key(0)
    method = make_method({"name": name, **LEARNING[name]})
    method.prepare(problem, key, lambda _: None)
    state = loop.start(method, problem, key).to(META)
    there = replace(problem, device=META)
    for step in (0, 1):
        state.step = step
        state.images.requires_grad_(True)
        method.loss(state, there, range(there.classes), key).backward()
        assert state.images.grad is not None and state.images.grad.device == META
        state.images = state.images.detach()
        if name != "mtt":  # whose step size, a single number, is brought to the CPU once a step
            method.after_update(state, there, key)


def test_telling_seldom_changes_nothing(monkeypatch):
    problem = small_problem(2)
    expected, told = distilled(problem, "dm")
    monkeypatch.setitem(loop.TOLD_AT_ONCE, "cpu", 5)
    found, seldom = distilled(problem, "dm")
    assert torch.equal(found.images, expected.images)
    assert [step for step, _ in told] == list(range(1, 13)) and [step for step, _ in seldom] == [5, 10, 12]
    assert [loss for _, losses in told for loss in losses] == [loss for _, losses in seldom for loss in losses]


def test_images_kept_on_a_device_are_those_of_the_array():
    array = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4), dtype=np.uint8)
    there, here = Pixels(array, META), Pixels(array, torch.device("cpu"))
    assert there.resident is not None and there.resident.device == META and here.resident is None
    there.resident, there.device = torch.from_numpy(array), torch.device("cpu")
    for rows in (slice(2, 5), torch.tensor([8, 0, 3])):
        assert torch.equal(there[rows], here[rows]) and here[rows].dtype == torch.uint8


def parts(soft):
    draw = np.random.default_rng(0)
    made = []
    for count in (11, 11):
        pixels = draw.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)
        labels = draw.integers(0, 3, count)
        said = draw.dirichlet(np.ones(3), count).astype(np.float32) if soft else None
        made.append(Part(pixels, labels, said))
    return made


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["convnet", "mlp", "vit"])
def test_networks_trained_together_are_those_trained_alone(name, soft):
    network = make_network(name, 1, 16, 16, 3, RECIPE.width)
    one, other = parts(soft)
    sets, keys = [one, one, other], [Key(1), Key(2), Key(1)]
    together = train_stacked(network, sets, SEEN, RECIPE, keys, torch.device("cpu"))
    for part, key, own in zip(sets, keys, taken_apart(together, 3), strict=True):
        alone = train(network, part, SEEN, RECIPE, key)
        # What they say, not their parameters: some have no effect, and drift with rounding.
        said = [predict(network, parameters, other.pixels, SEEN) for parameters in (own, alone)]
        np.testing.assert_allclose(*said, atol=1e-3)


def test_networks_with_running_means_are_not_trained_together():
    network = make_network("convnet-bn", 1, 16, 16, 3, RECIPE.width)
    with pytest.raises(ValueError, match="running means"):
        train_stacked(network, parts(False), SEEN, RECIPE, [Key(1), Key(2)], torch.device("cpu"))


def test_jobs_done_together_say_what_they_say_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    (one, other), test = parts(False), parts(False)[0]
    few = Part(other.pixels[:4], other.labels[:4])
    known = {part_digest(part): part for part in (one, other, few, test)}

    def job(part, index, network="convnet", keep=False):
        digest = part_digest(test)
        return Job(part_digest(part), digest, digest, SEEN, 3, RECIPE, 3, 0, index, network, keep)

    jobs = [job(one, 0), job(other, 0, keep=True), job(one, 1), job(few, 0), job(one, 0, "convnet-bn")]
    for again in range(2):  # the second time one of them lies in the cache
        found, seen = {}, []
        do_stacked(jobs, known, seen.append, found.__setitem__, torch.device("cpu"))
        assert set(found) == set(jobs)
        kept = jobs[1].work(known) if again else 0
        assert sum(seen) == sum(j.work(known) for j in jobs) - kept
        for each, run in found.items():
            alone = do(replace(each, keep=False), known, lambda _: None)
            np.testing.assert_allclose(run.probabilities, alone.probabilities, atol=2e-3)
            if not (again and each.keep):
                np.testing.assert_allclose(run.curve[:, :2], alone.curve[:, :2])


def test_no_more_networks_together_than_there_is_memory_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    network = make_network("convnet", 3, 224, 224, 3, 128)
    each = 256 * network.activation_mb
    assert [stacked.together_at_most(network, 256, mb) for mb in (1, 2 * each, 7 * each, 1e9)] == [1, 1, 3, 32]
    (one, _), sizes = parts(False), []
    known = {part_digest(one): one}
    jobs = [Job(*[part_digest(one)] * 2, None, SEEN, 3, RECIPE, 2, 0, index) for index in range(3)]
    small = RECIPE.batch * jobs[0].make_network(known).activation_mb
    monkeypatch.setattr(stacked, "train_stacked", lambda *given: sizes.append(len(given[4])) or train_stacked(*given))
    for networks, expected in ((2, [2, 1]), (1, [])):
        monkeypatch.setattr(stacked, "_free_mb", lambda _, n=networks: 2 * n * small + 1e-6)
        found = {}
        do_stacked(jobs, known, lambda _: None, found.__setitem__, torch.device("cpu"))
        assert set(found) == set(jobs) and sizes == expected
        sizes.clear()


def test_jobs_go_to_the_device_that_was_chosen(monkeypatch):
    given = []
    monkeypatch.setattr(workers, "device", lambda: META)
    monkeypatch.setattr(workers, "do_stacked", lambda *arguments: given.append(arguments))
    workers.run_all(["job"], {}, print, print)
    assert given == [(["job"], {}, print, print, META)]


def test_gradients_of_all_classes_at_once_are_those_class_by_class():
    problem, key = small_problem(2), Key(0)
    for settings in ({}, {"augment": True}, {"precision": "bfloat16"}):
        method = make_method({"name": "dc", **LEARNING["dc"], **settings})
        state = loop.start(method, problem, key)
        found = []
        for there in (problem, replace(problem, device=torch.device("cpu:0"))):
            images = state.images.clone().requires_grad_(True)
            step = replace(state, images=images)
            if there is problem:
                loss = method.loss(step, problem, range(3), key)
            else:
                parameters = method._parameters(step, problem, key)
                pairs = [method._pair(step, problem, label, key) for label in range(3)]
                loss = method._together(method.network(problem), parameters, range(3), pairs)
            loss.backward()
            found.append((loss.detach(), images.grad))
        loose = settings.get("precision") == "bfloat16"
        torch.testing.assert_close(*[loss for loss, _ in found], rtol=0.02 if loose else 1e-5, atol=0)
        torch.testing.assert_close(*[g for _, g in found], rtol=1e-4, atol=0.05 if loose else 1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    for name in ("cuda", "cuda:1"):
        result = CliRunner().invoke(app, ["distill", "phantom", "--out", str(tmp_path / "p"), "--device", name])
        assert isinstance(result.exception, medistill.MedistillError) and not list(tmp_path.iterdir())
        assert "finds 0 GPUs here" in str(result.exception)


def test_an_unknown_device_is_one_line(monkeypatch):
    with pytest.raises(medistill.MedistillError, match="'gpu'; allowed: auto, cpu, cuda"):
        medistill.use_device("gpu")
    monkeypatch.setenv("MEDISTILL_DEVICE", "tpu")
    with pytest.raises(medistill.MedistillError, match="MEDISTILL_DEVICE"):
        medistill.distill("phantom", out="nowhere", ipc=1)


@needs_gpu
@pytest.mark.parametrize("name", sorted(LEARNING))
def test_a_gpu_gives_the_images_of_the_cpu(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    problem = small_problem(2)
    expected, _ = distilled(problem, name)
    found, _ = distilled(replace(problem, device=torch.device("cuda")), name)
    torch.testing.assert_close(found.images, expected.images, rtol=0.01, atol=0.02)


@needs_gpu
def test_a_gpu_trains_the_networks_of_the_cpu():
    network = make_network("convnet", 1, 16, 16, 3, RECIPE.width)
    one, other = parts(False)
    together = train_stacked(network, [one, other], SEEN, RECIPE, [Key(1), Key(2)], torch.device("cuda"))
    for part, key, own in zip((one, other), (Key(1), Key(2)), taken_apart(together, 2), strict=True):
        alone = train(network, part, SEEN, RECIPE, key)
        said = [predict(network, parameters, other.pixels, SEEN) for parameters in (own, alone)]
        np.testing.assert_allclose(*said, atol=0.02)
