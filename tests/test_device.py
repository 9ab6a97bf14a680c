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
from medistill.data.image import Normalisation
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.distil import loop
from medistill.distil.method import make_method
from medistill.distil.methods import dc
from medistill.distil.problem import make_problem
from medistill.evaluation import stacked, workers
from medistill.evaluation.jobs import Job, do_job
from medistill.evaluation.stacked import do_stacked
from medistill.keys import Key
from medistill.nets.bank import PixelBank
from medistill.nets.stacked import train_stacked, unstack
from medistill.nets.training import predict_probabilities, train_network
from medistill.nets.zoo import make_network
from medistill.tasks.task import numbered
from problems import step

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
RECIPE = Recipe(min_steps=25, steps_per_doubling=0, epochs=0.1, batch_size=5, width=6)
NORMALISATION = Normalisation((0.5,), (0.25,), "horizontal")
TASKS = {kind: numbered(kind, 3) for kind in ("multi-class", "multi-label")}
CLASSES = TASKS["multi-class"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


class AsIfGpu(str):
    """A name of the CPU, given as a device, that says it is a GPU: what is done there is what a GPU does."""

    type = "cuda"


def problem_on(device, **phantom):
    """The tests' small problem, its images on a device."""
    return make_problem(prepare(make_phantom(Phantom(classes=3, images=36, size=16, **phantom))), 2, None, 1, device)


def distilled(problem, name, **more):
    method, key, told = make_method({"name": name, **LEARNING[name], **more}), Key(3), []
    method.prepare(problem, key, lambda _: None)
    start = loop.start(method, problem, key)
    state = loop.run(method, problem, key, start, lambda state, losses: told.append((state.step, losses)))
    return state.to("cpu"), told


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_no_step_waits_or_mixes_devices(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    here, there, key = problem_on(torch.device("cpu")), problem_on(META), Key(0)
    method = make_method({"name": name, **LEARNING[name]})
    method.prepare(here, key, lambda _: None)
    state = loop.start(method, here, key).to(META)
    for number in (0, 1):
        state.step = number
        found = step(method, state, there, key)
        assert found.images is not None and found.images.device == META and found.loss.device == META
        if name != "mtt":  # whose step size, a single number, is brought to the CPU once a step
            method.after_update(state, there, key, found.extra)


def test_telling_seldom_changes_nothing(monkeypatch):
    problem = problem_on(torch.device("cpu"))
    expected, told = distilled(problem, "dm")
    monkeypatch.setitem(loop.SYNC_INTERVAL, "cpu", 5)
    found, seldom = distilled(problem, "dm")
    assert torch.equal(found.images, expected.images)
    assert [step for step, _ in told] == list(range(1, 13)) and [step for step, _ in seldom] == [5, 10, 12]
    assert [loss for _, losses in told for loss in losses] == [loss for _, losses in seldom for loss in losses]


def test_images_kept_on_a_device_are_those_of_the_array():
    array = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4), dtype=np.uint8)
    there, here = PixelBank(array, META), PixelBank(array, torch.device("cpu"))
    assert there.resident is not None and there.resident.device == META and here.resident is None
    there.resident, there.device = torch.from_numpy(array), torch.device("cpu")
    for rows in (slice(2, 5), torch.tensor([8, 0, 3])):
        assert torch.equal(there[rows], here[rows]) and here[rows].dtype == torch.uint8


def parts(soft, task=CLASSES, shape=(16, 16)):
    """Two sets of random images with labels, given as probabilities or not."""
    draw = np.random.default_rng(0)
    found = []
    for count in (11, 11):
        pixels = draw.integers(0, 256, (count, 1, *shape), dtype=np.uint8)
        labels = draw.integers(0, 3, count) if task.exclusive else draw.integers(0, 2, (count, 3))
        said = draw.dirichlet(np.ones(3), count).astype(np.float32) if soft else None
        found.append(TensorSplit(pixels, task.targets(labels), said))
    return found


def trained_together_and_alone(network, sets, keys, task, device):
    """What networks say of the first set's images that were trained together on a device, or each alone."""
    together = train_stacked(network, sets, task, NORMALISATION, RECIPE, keys, device)
    for data, key, own in zip(sets, keys, unstack(together, len(keys)), strict=True):
        alone = train_network(network, data, task, NORMALISATION, RECIPE, key)
        # What they say, not their parameters: some have no effect, and drift with rounding.
        yield [predict_probabilities(network, p, sets[0].pixels, task, NORMALISATION) for p in (own, alone)]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("convnet", "multi-class"), ("mlp", "multi-class"), ("vit", "multi-class"), ("convnet", "multi-label")],
)
def test_networks_trained_together_are_those_trained_alone(name, kind, soft):
    network = make_network(name, 1, (16, 16), 3, RECIPE.width)
    one, other = parts(soft, TASKS[kind])
    sets, keys = [one, one, other], [Key(1), Key(2), Key(1)]
    pairs = list(trained_together_and_alone(network, sets, keys, TASKS[kind], torch.device("cpu")))
    for together, alone in pairs:
        np.testing.assert_allclose(together, alone, atol=1e-3)
    assert abs(pairs[0][1] - pairs[1][1]).max() > 0.01 < abs(pairs[0][1] - pairs[2][1]).max(), "they do differ"


def test_networks_of_volumes_trained_together_are_those_trained_alone():
    network = make_network("convnet", 1, (16, 16, 16), 3, RECIPE.width)
    sets, keys = parts(False, shape=(16, 16, 16)), [Key(1), Key(2)]
    for together, alone in trained_together_and_alone(network, sets, keys, CLASSES, torch.device("cpu")):
        np.testing.assert_allclose(together, alone, atol=1e-3)


def test_networks_with_running_means_are_not_trained_together():
    network = make_network("convnet-bn", 1, (16, 16), 3, RECIPE.width)
    with pytest.raises(ValueError, match="running means"):
        train_stacked(network, parts(False), CLASSES, NORMALISATION, RECIPE, [Key(1), Key(2)], torch.device("cpu"))


def make_job(train, test, index, architecture="convnet", keep=False, val=None, curve_points=2):
    digests = [train.digest, test.digest, None if val is None else val.digest]
    return Job(*digests, NORMALISATION, "multi-class", 3, RECIPE, curve_points, 0, index, architecture, keep)


def test_jobs_done_together_say_what_they_say_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    (one, other), test = parts(False), parts(False)[0]
    few = TensorSplit(other.pixels[:4], other.targets[:4])
    known = {data.digest: data for data in (one, other, few, test)}

    def job(data, index, architecture="convnet", keep=False):
        return make_job(data, test, index, architecture, keep, test, 3)

    jobs = [job(one, 0), job(other, 0, keep=True), job(one, 1), job(few, 0), job(one, 0, "convnet-bn")]
    for again in range(2):  # the second time one of them lies in the cache
        found, seen = {}, []
        do_stacked(jobs, known, seen.append, found.__setitem__, torch.device("cpu"))
        assert set(found) == set(jobs)
        kept = jobs[1].work(known) if again else 0
        assert sum(seen) == sum(j.work(known) for j in jobs) - kept
        for each, run in found.items():
            alone = do_job(replace(each, keep=False), known, lambda _: None)
            np.testing.assert_allclose(run.probabilities, alone.probabilities, atol=2e-3)
            if not (again and each.keep):
                np.testing.assert_allclose(run.curve[:, :2], alone.curve[:, :2])


def test_no_more_networks_together_than_there_is_memory_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path))
    network = make_network("convnet", 3, (224, 224), 3, 128)
    each = 256 * network.activation_mb
    assert [stacked.together_at_most(network, 256, mb) for mb in (1, 2 * each, 7 * each, 1e9)] == [1, 1, 3, 32]
    (one, _), sizes, batches = parts(False), [], []
    known = {one.digest: one}
    jobs = [make_job(one, one, index) for index in range(3)]
    monkeypatch.setattr(stacked, "train_stacked", lambda *given: sizes.append(len(given[5])) or train_stacked(*given))
    for networks, expected in ((2, [2, 1]), (1, [])):
        monkeypatch.setattr(stacked, "together_at_most", lambda _, batch, mb, n=networks: batches.append(batch) or n)
        found = {}
        do_stacked(jobs, known, lambda _: None, found.__setitem__, torch.device("cpu"))
        assert set(found) == set(jobs) and sizes == expected and set(batches) == {RECIPE.batch_size}
        sizes.clear()


def test_jobs_go_to_the_device_that_was_chosen(monkeypatch):
    given = []
    monkeypatch.setattr(workers, "device", lambda: META)
    monkeypatch.setattr(workers, "do_stacked", lambda *arguments: given.append(arguments))
    workers.run_all(["job"], {}, print, print)
    assert given == [(["job"], {}, print, print, META)]


@pytest.mark.parametrize("task", ["classes", "findings"])
@pytest.mark.parametrize("settings", [{}, {"augment": True}, {"precision": "bfloat16"}])
def test_gradients_of_all_classes_at_once_are_those_class_by_class(settings, task, monkeypatch):
    distances, distance = [], dc.gradient_distance
    monkeypatch.setattr(dc, "gradient_distance", lambda *given: distances.append(given) or distance(*given))
    problem, key = problem_on(torch.device("cpu"), task=task), Key(0)
    method = make_method({"name": "dc", **LEARNING["dc"], **settings})
    state = loop.start(method, problem, key)
    found, counted = [], []
    for there in (problem, replace(problem, device=AsIfGpu("cpu"))):
        found.append(step(method, state, there, key))
        counted.append(len(distances))
    assert counted == [problem.strata, problem.strata + 1], "one after the other, then all in one"
    (one_by_one, together) = found
    torch.testing.assert_close(together.loss, one_by_one.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(together.images, one_by_one.images, rtol=1e-4, atol=1e-5)


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
    expected, _ = distilled(problem_on(torch.device("cpu")), name)
    found, _ = distilled(problem_on(torch.device("cuda")), name)
    torch.testing.assert_close(found.images, expected.images, rtol=0.01, atol=0.02)


@needs_gpu
def test_a_gpu_trains_the_networks_of_the_cpu():
    network = make_network("convnet", 1, (16, 16), 3, RECIPE.width)
    sets, keys = parts(False), [Key(1), Key(2)]
    for together, alone in trained_together_and_alone(network, sets, keys, CLASSES, torch.device("cuda")):
        np.testing.assert_allclose(together, alone, atol=0.02)
