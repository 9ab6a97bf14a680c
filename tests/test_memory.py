"""A bound on memory: what fits, what is refused, and that dividing the work changes nothing but rounding."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import medistill
from medistill.config import LabelConfig, Recipe
from medistill.data import arrays
from medistill.data.image import Normalisation
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.distil import memory
from medistill.distil.memory import MARGIN, PROGRAM_MB, parse_limit, planned
from medistill.distil.method import make_method
from medistill.distil.networked import in_parts
from medistill.distil.problem import make_problem
from medistill.errors import ConfigError
from medistill.evaluation import teachers
from medistill.keys import Key
from medistill.nets import training
from medistill.nets.convnet import ConvNet
from medistill.nets.training import micro_batch_size, predict_probabilities, train_network
from medistill.nets.zoo import make_network
from medistill.package.package import read_package
from medistill.parallel import Workers
from medistill.runtime import child_environment
from medistill.testing import small_problem
from problems import black_problem

SOURCE = "phantom:classes=4,images=80,size=16"
SMALL = "phantom:classes=4,images=600,size=28,colour=true"
SEEN_IN_PATCHES = "phantom:classes=2,images=160,size=160,colour=true"
DM = {"method": {"iterations": 3, "networks": 2, "filters": 64, "real_batch": 8}}


def plan_for(name, limit, problem=None, **teaching):
    """For networks that see every pixel, whose memory grows with the images' size."""
    networked = {} if name == "random" else {"filters": 64} if name == "herding" else {"filters": 64, "stem": 1}
    method = make_method({"name": name, **networked})
    return planned(method, problem or small_problem(10), prepare(load(SOURCE)).memory_mb, limit, **teaching)


@pytest.mark.parametrize(
    ("names", "ways"),
    [(("dm", "ncfm"), [(3, 2), (1, 2), (1, 1)]), (("dc", "dsa"), [(3, 1), (2, 1), (1, 1)])],
)
def test_fewer_workers_then_fewer_classes_need_less(names, ways):
    """Of 16 images of each of three classes dm makes two pieces of work, dc three."""
    problem = small_problem(16, images=96).worked_by(Workers(3))
    for name in names:
        plan = plan_for(name, None, problem)
        found, needed = [], math.inf
        while plan is not None and plan.problem.micro_batch_size is None:
            assert plan.needed_mb < needed
            needed = plan.needed_mb
            assert plan_for(name, MARGIN * needed + 0.001, problem).needed_mb == needed
            found.append((plan.problem.workers.number, plan.strata))
            try:
                plan = plan_for(name, MARGIN * needed - 0.001, problem)
            except ConfigError:
                plan = None
        assert found == ways


@pytest.mark.parametrize("name", ["dm", "ncfm", "frepo", "herding"])
def test_images_are_divided_where_classes_cannot_be(name):
    """Large ones, of which not even a single class fits."""
    large = black_problem(10, 512 if name == "herding" else 128)
    plan, needed = plan_for(name, None, large), math.inf
    while plan.problem.micro_batch_size is None:
        assert plan.needed_mb < needed
        needed = plan.needed_mb
        plan = plan_for(name, MARGIN * needed - 0.001, large)  # is refused where images cannot be divided


def test_without_a_limit_the_work_is_divided_as_if_4_gb_were_there():
    huge = black_problem(10, 1024)
    plan = plan_for("dm", None, huge)
    assert plan.strata == 1 and plan.problem.micro_batch_size is not None
    joint = plan_for("mtt", None, huge)
    assert joint.needed_mb > 4000, "what cannot be divided is not refused where nobody asked"


def test_where_nothing_fits_little_is_not_saved_at_any_price(monkeypatch):
    """Of ways that need 1300, 415 and 400 MB, the last of which costs most."""
    ways = [(16, 1300 - PROGRAM_MB), (8, 415 - PROGRAM_MB), (1, 400 - PROGRAM_MB)]
    method, problem = make_method({"name": "random"}), small_problem(2)
    taken = {}
    for usual in (350, 402, 450, 1300):
        monkeypatch.setattr(memory, "USUAL_MB", usual)
        taken[usual] = planned(method, problem, 0.0, None, ways).max_workers
    assert taken == {350: 8, 402: 1, 450: 8, 1300: 16}
    with pytest.raises(
        ConfigError, match="460 MB or more"
    ):  # a limit that was stated is told what is needed at least
        planned(method, problem, 0.0, MARGIN * 350, ways)


def test_fewer_teachers_side_by_side_need_less(monkeypatch):
    monkeypatch.setattr(teachers, "usable_cores", lambda: 3)
    part = prepare(load(SOURCE)).train
    ways = teachers.training_ways(part, 4, LabelConfig(teachers=4), torch.device("cpu"))
    taken = [mb for _, mb in ways]
    assert [n for n, _ in ways] == [3, 2, 1] and taken == sorted(taken, reverse=True)
    plan = plan_for("random", None, teaching=ways)
    assert plan.max_workers == 3
    assert plan_for("random", MARGIN * plan.needed_mb - 1, teaching=ways).max_workers == 2
    least = plan_for("random", None, teaching=ways[2:]).needed_mb
    with pytest.raises(ConfigError, match="MB or more"):
        plan_for("random", MARGIN * least - 1, teaching=ways)
    assert teachers.training_ways(part, 4, LabelConfig(), torch.device("cpu")) == [(1, 0.0)]


def test_training_in_parts_is_training(monkeypatch):
    prepared = prepare(load(SOURCE))
    data, task, recipe = prepared.train, prepared.task, Recipe(min_steps=4, max_steps=4, batch_size=10)
    network, normalisation = ConvNet(1, (16, 16), 4, filters=8), Normalisation((0.5,), (0.25,), "none")

    def trained():
        # Biases before a normalisation have no gradient but rounding, so what is said is compared, not parameters.
        parameters = train_network(network, data, task, normalisation, recipe, Key(0))
        return predict_probabilities(network, parameters, data.pixels, task, normalisation)

    whole, normed = trained(), make_network("convnet-bn", 1, (16, 16), 4, 8)
    assert micro_batch_size(network, 10) == 10 and micro_batch_size(normed, 10) == 10
    monkeypatch.setattr(training, "AT_ONCE_MB", 3.5 * network.activation_mb)
    assert micro_batch_size(network, 10) == 3, "parts of unequal size weigh unequally"
    assert micro_batch_size(normed, 10) == 10, "images of a batch change one another's scores"
    assert np.allclose(trained(), whole, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_parts_have_the_same_gradient(at_once):
    network = ConvNet(1, (16, 16), 4, filters=8)
    parameters = {n: p.double().requires_grad_(True) for n, p in network.parameters(Key(0)).items()}
    images = torch.randn(5, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    wanted = [images, *parameters.values()]

    def logits(x):
        return network.logits(parameters, x)

    whole, parted = (
        torch.autograd.grad(scores.square().sum(), wanted)
        for scores in (logits(images), in_parts(logits, images, at_once))
    )
    assert all(torch.allclose(a, b) for a, b in zip(whole, parted, strict=True))


@pytest.mark.parametrize("name", ["dm", "mtt", "frepo"])
def test_too_low_a_limit_is_refused_with_what_is_needed(name):
    with pytest.raises(ConfigError, match=r"--memory-limit.*MB or more") as error:
        plan_for(name, 10)
    assert "10 MB" in str(error.value)


@pytest.mark.parametrize("text", ["", "3 TB", "-1GB", "much", "0"])
def test_limits_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="3GB"):
        parse_limit(text)


def test_units():
    assert parse_limit("3GB") == 3000 and parse_limit("500 mb") == 500 and parse_limit("250") == 250


def test_divided_work_gives_the_same_images_up_to_rounding(tmp_path):
    prepared = prepare(load(SOURCE))
    method, problem = make_method({"name": "dm", **DM["method"]}), make_problem(prepared, 5, None)
    limit = MARGIN * planned(method, problem, prepared.memory_mb, None).needed_mb - 0.01
    assert planned(method, problem, prepared.memory_mb, limit).strata < 4
    for name, asked in (("whole", None), ("divided", f"{limit} MB")):
        medistill.distill(SOURCE, out=tmp_path / name, method="dm", ipc=5, settings=DM, memory_limit=asked)
    whole, divided = (read_package(tmp_path / name).pixels.astype(int) for name in ("whole", "divided"))
    assert abs(whole - divided).max() <= 1


def test_a_run_goes_on_with_another_limit(tmp_path):
    def made(limit, **more):
        return medistill.distill(
            SOURCE, out=tmp_path / "p", method="dm", ipc=2, settings=DM, memory_limit=limit, **more
        )["package_id"]

    assert made("3GB") == made("2GB") == made(None), "what is finished is found"
    with pytest.raises(ConfigError, match="another configuration"):
        made("3GB", seed=1)


@pytest.mark.parametrize(
    ("source", "threads", "ipc", "settings"),
    [
        (SMALL, 2, 20, {"name": "dm", "iterations": 2, "networks": 2, "filters": 128, "real_batch": 128}),
        (SMALL, 2, 20, {"name": "dm", "iterations": 2, "networks": 2, "filters": 64, "precision": "float32"}),
        (SMALL, 2, 5, {"name": "dc", "iterations": 1, "outer_loops": 2, "inner_loops": 1, "filters": 128}),
        (SEEN_IN_PATCHES, 1, 1, {"name": "dm", "iterations": 2, "networks": 2}),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="peaks were measured on Linux")
def test_the_estimate_is_within_a_quarter_of_the_peak(source, threads, ipc, settings, tmp_path):
    """Of a process of its own, because a peak is of all that a process ever did. Of large images by one worker: how
    often two have a chunk of them at the same moment depends on what else runs."""
    given = [f"--set=method.{name}={value}" for name, value in settings.items() if name != "name"]
    command = ["distill", source, "--method", settings["name"], "--ipc", str(ipc), "--out", str(tmp_path / "p")]
    done = subprocess.run(
        [sys.executable, "-m", "medistill.cli", *command, "--json", *given],
        capture_output=True, text=True, env={**child_environment(threads), "MEDISTILL_DEVICE": "cpu"}, check=True,
    )  # fmt: skip
    prepared, method = prepare(load(source)), make_method(settings)
    problem = make_problem(prepared, ipc, None).worked_by(Workers(threads))
    needed = planned(method, problem, prepared.memory_mb, None).needed_mb
    assert needed == pytest.approx(json.loads(done.stdout)["cost"]["peak_memory_mb"], rel=0.25)


def test_arrays_count_by_where_they_lie(monkeypatch):
    prepared = prepare(load(SOURCE))
    before = prepared.memory_mb
    pixels = sum(split.pixels.nbytes for split in prepared.splits.values())
    assert before == pytest.approx(2 * pixels / 1e6), "as read and as prepared, both of eight bits"
    monkeypatch.setattr(arrays, "LARGE", 100)
    monkeypatch.setattr(arrays, "BLOCK", 10)
    assert prepared.memory_mb == before, "what is in memory stays there, however large"
    assert prepare(load(SOURCE)).memory_mb < before


@pytest.mark.parametrize("name", ["random", "herding", "dm", "frepo"])
def test_images_that_are_made_count(name):
    """Of a coreset they are all that there is; at 224 pixels a thousand take a gigabyte."""
    method = make_method({"name": name})
    few, many = (black_problem(n, 224).in_micro_batches(1) for n in (2, 10))
    more = 24 * 224 * 224 * 4e-6
    assert method.memory_mb(many, 1) - method.memory_mb(few, 1) >= 4 * more
