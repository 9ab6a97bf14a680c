"""How long work takes is told before it begins: counted from what a few steps took."""

from itertools import cycle

import pytest
import torch

import medistill
from conftest import SMALL_DM, TINY
from medistill.config import Recipe
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.distil import duration, loop
from medistill.distil.method import make_method
from medistill.evaluation import arms, estimate, teachers
from medistill.evaluation import duration as training
from medistill.evaluation.duration import Pace
from medistill.evaluation.jobs import is_kept
from medistill.evaluation.workers import OVERHEAD
from medistill.files import CACHE_VARIABLE
from medistill.keys import Key
from medistill.nets.training import steps_for
from medistill.parallel import Workers
from medistill.testing import small_problem

DM = {"name": "dm", "networks": 10, "iterations": 100, "real_batch": 8, "filters": 8}
SOURCE = "phantom:classes=3,images=36,size=16"


@pytest.mark.parametrize(
    ("settings", "done", "seconds"),
    [
        (DM, 0, 10 * 3 + 90 * 1),
        (DM, 4, 6 * 3 + 90 * 1),
        (DM, 50, 50 * 1),
        ({**DM, "networks": 0}, 0, 100 * 3),
        (DM, 90, 0),
    ],
)
def test_steps_that_ask_real_images_are_counted_apart(monkeypatch, settings, done, seconds):
    """A first step of 5 seconds, one of 3 that asks, one of 1 that does not."""
    method, problem = make_method(settings), small_problem(4)
    state = loop.start(method, problem, Key(0))
    state.step = done
    clock, costs, asked = [0.0], cycle([5.0, 3.0, 1.0]), []

    def run(*given, until, sharing):
        clock[0] += next(costs)
        asked.append(until - 1)

    monkeypatch.setattr(duration.loop, "run", run)
    monkeypatch.setattr(duration.time, "monotonic", lambda: clock[0])
    found = duration.learning_seconds(method, problem, Key(0), state, None, method.optimiser(problem))
    assert found == seconds
    assert asked == [done, done + 1, done + 1] * (len(asked) // 3)
    assert bool(asked) == bool(seconds)


def test_the_faster_way_of_sharing_is_timed_several_times(monkeypatch):
    """Steps on layers' threads take half as long; one of them in three takes ten times as long, which is no rule."""
    method = make_method({**DM, "networks": 0, "iterations": 2000})
    problem = small_problem(4).worked_by(Workers(2))
    state, clock, ways = loop.start(method, problem, Key(0)), [0.0], []

    def run(*given, until, sharing):
        ways.append(sharing.within)
        clock[0] += (0.5 if sharing.within else 1.0) * (10 if len(ways) % 9 == 8 else 1)

    monkeypatch.setattr(duration.loop, "run", run)
    monkeypatch.setattr(duration.time, "monotonic", lambda: clock[0])
    assert duration.learning_seconds(method, problem, Key(0), state, None, method.optimiser(problem)) == 1000
    assert ways.count(False) == 3
    assert ways.count(True) == 3 * (duration.TRIALS - 1)


@pytest.mark.parametrize("name", ["dm", "dc", "frepo", "mtt"])
def test_what_is_measured_changes_nothing(name, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))  # another test may have trained the same experts
    small = {"dm": DM, "dc": {"iterations": 20, "outer_loops": 2, "real_batch": 8, "filters": 8},
             "frepo": {"iterations": 30, "networks": 2, "filters": 8},
             "mtt": {"iterations": 30, "experts": 1, "expert_epochs": 3, "latest_start": 1, "span": 1,
                     "student_steps": 2, "filters": 8}}  # fmt: skip
    method, problem = make_method({"name": name, **small[name]}), small_problem(2)
    assert (method.preparing_seconds(problem, Key(0)) > 0) == (name == "mtt")
    method.prepare(problem, Key(0), lambda _: None)
    assert method.preparing_seconds(problem, Key(0)) == 0
    optimiser = method.optimiser(problem)

    def images(look):
        state = loop.start(method, problem, Key(0))
        if look:
            assert duration.learning_seconds(method, problem, Key(0), state, None, optimiser) > 0
        return loop.run(method, problem, Key(0), state, until=3).images

    assert torch.equal(images(False), images(True))


def test_networks_are_counted_and_share_the_cores(monkeypatch):
    prepared = prepare(load(SOURCE))
    recipe = Recipe(min_steps=40, max_steps=100, batch_size=8, width=8)
    pace = Pace(prepared.train, prepared.task, prepared.normalisation, recipe)
    assert 0 < pace.asking < 1 and 0 < pace.training < 1, "of a busy machine nothing more is sure"
    assert 0 < pace.alone <= 1
    pace.training, pace.asking, pace.alone = 0.01, 0.001, 1.0
    one = steps_for(recipe, 36) * (8 + OVERHEAD) * 0.01 + 100 * 0.001
    assert pace.seconds([36], 100) == pytest.approx(one)
    assert pace.seconds([], 100) == 0
    monkeypatch.setattr(training, "usable_cores", lambda: 2)
    together = training.SIDE_BY_SIDE * 1.5 * one
    assert pace.seconds([36, 36, 36], 100) == pytest.approx(together), "one of three is cut in two"
    assert pace.seconds([36, 36, 36], 100, 1) == pytest.approx(3 * one)
    assert pace.seconds([2], 0) == pytest.approx(40 * (2 + OVERHEAD) * 0.01), "a step costs as much as a few images"
    pace.alone = 0.6
    assert pace.seconds([36], 100) == pytest.approx(0.6 * one), "alone it has all cores"
    assert pace.seconds([36, 36, 36], 100) == pytest.approx(together), "none is alone"


@pytest.mark.parametrize("done", [0, 1, 2, 8, 14])
def test_steps_of_gradient_matching_that_train_a_network_are_counted_apart(done):
    method = make_method({"name": "dc", "iterations": 10, "outer_loops": 3})
    kinds = method.kinds_of_steps(small_problem(2), done)
    assert sum(count for count, _ in kinds) == 30 - done
    assert all(step > done for _, step in kinds)
    assert {step % 3 == 2 for _, step in kinds} == {False, True}


def test_what_evaluating_is_told_to_train_is_what_it_trains(monkeypatch, tmp_path):
    """By the sizes of the training sets: all, none the second time, another architecture's, robust scores'."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    counted, trained = [], []

    class Counting:
        def __init__(self, *_):
            pass

        def seconds(self, sizes, *_):
            counted.extend(sizes)
            return 1.0

    def labelling(_pace, _train, sizes, *_):
        counted.extend(sizes)
        return 1.0

    run_all = arms.run_all

    def counting(jobs, splits, *given):
        trained.extend(len(splits[job.train]) for job in jobs if not is_kept(job))
        run_all(jobs, splits, *given)

    monkeypatch.setattr(estimate, "Pace", Counting)
    monkeypatch.setattr(estimate, "label_seconds", labelling)
    for module in (arms, teachers):
        monkeypatch.setattr(module, "run_all", counting)
    settings = {**SMALL_DM, "factor": 2, "labels": {"teachers": 2, "recipe": TINY.recipe.model_dump()}}
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, settings=settings)
    trained.clear()
    for change in ({}, {}, {"architectures": ("convnet", "mlp")}, {"robust_scores": True}, {"repeats": 3}):
        config = TINY.model_copy(update=change)
        medistill.evaluate(tmp_path / "p", on=SOURCE, config=config, progress=True)
        assert sorted(counted) == sorted(trained), change
        counted.clear(), trained.clear()
