"""Each method against its formula, and all of them against the contract."""

import sys
from pathlib import Path

import pytest
import torch

import medistill
from conftest import TINY
from medistill.augment import siamese
from medistill.distil import loop
from medistill.distil.method import Method, MethodInfo, State, make_method, methods, register
from medistill.distil.methods.herding import herd
from medistill.distil.methods.kcentre import farthest_first
from medistill.distil.problem import Problem, images_per_class
from medistill.errors import ConfigError
from medistill.evaluation.protocol import ARMS
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import MethodConformance, small_problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import reference_dm

SMALL = {
    "dm": {"iterations": 3, "networks": 2, "filters": 8, "real_batch": 8},
    "dc": {"iterations": 2, "outer_loops": 2, "inner_loops": 1, "filters": 8, "real_batch": 8},
    "dsa": {"iterations": 2, "outer_loops": 2, "inner_loops": 1, "filters": 8, "real_batch": 8},
    "ncfm": {"iterations": 3, "networks": 2, "filters": 8, "real_batch": 8, "frequencies": 16},
    "mtt": {
        "iterations": 3,
        "learning_rate": 10.0,
        "experts": 1,
        "expert_epochs": 3,
        "latest_start": 1,
        "span": 1,
        "student_steps": 3,
        "student_batch": 4,
        "filters": 8,
    },
    "frepo": {"iterations": 4, "networks": 2, "longest_training": 3, "filters": 8, "real_batch": 12},
    "herding": {"filters": 8},
    "k-centre": {"filters": 8},
    "k-means": {"filters": 8},
}

# One class of tests per registered method: a new method is tested the moment it exists.
for _name in methods():
    _class = f"TestConformance_{_name.replace('-', '_')}"
    globals()[_class] = type(_class, (MethodConformance,), {"method": _name, "settings": SMALL.get(_name, {})})


class TestConformanceDMAsPublished(MethodConformance):
    method = "dm"
    settings = {**SMALL["dm"], "networks": 0, "start": "noise"}


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_goes_the_whole_way(name, tmp_path):
    """From data to figures: plain, and stored smaller with labels by a teacher."""
    source = "phantom:classes=2,images=20,size=16"
    own = {"method": SMALL.get(name, {})}
    plain = medistill.distill(
        source, out=tmp_path / "p", method=name, ipc=1, settings=own, evaluate=True, evaluate_config=TINY
    )
    assert set(plain["evaluation"]["arms"]) == {"distilled", "random", "full", "full_balanced"}
    labels = {"teachers": 1, "recipe": TINY.recipe.model_dump()}
    soft = medistill.distill(
        source, out=tmp_path / "q", method=name, ipc=1, factor=2, settings={**own, "labels": labels}, evaluate=True,
        evaluate_config=TINY,
    )  # fmt: skip
    assert set(soft["evaluation"]["arms"]) == set(ARMS)
    assert soft["images"] == 4 * plain["images"]


@pytest.mark.parametrize("networks", [0, 2])
@pytest.mark.parametrize("augment", [False, True])
def test_dm_equals_the_obvious_loop(networks, augment):
    """Oracle: loss and image gradient in float64, one image at a time, class by class."""
    problem = _as_double(small_problem(3, size=28, images=30))
    method = make_method(
        {"name": "dm", "networks": networks, "filters": 6, "real_batch": 5, "augment": augment, "iterations": 9}
    )
    key = Key(4)
    state = method.setup(problem, key)
    state.step = 1
    state.memory = {k: v.double() if v.is_floating_point() else v for k, v in state.memory.items()}
    state.images = state.images.double().requires_grad_(True)
    with _double():
        ours = method.loss(state, problem, range(problem.classes), key)
    (our_gradient,) = torch.autograd.grad(ours, state.images)

    here = key.child("network", 1)
    with _double():
        parameters = ConvNet(*problem.shape, problem.classes, 6).parameters(here)
        changes = [siamese(here.child("augment", c).generator(), problem.flips) for c in range(problem.classes)]
    model = reference_dm.convnet(1, 28, 6).double()
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters.values(), strict=False):
            own.copy_(given)
    images = state.images.detach().clone().requires_grad_(True)
    made = [images[problem.made(c)] for c in range(problem.classes)]
    real = [problem.of_class(c, problem.draw(c, 5, here.child("real", c))).double() for c in range(problem.classes)]
    theirs = reference_dm.loss(model, made, real, (lambda c, x: changes[c](x)) if augment else (lambda c, x: x))
    (their_gradient,) = torch.autograd.grad(theirs, images)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert (our_gradient - their_gradient).norm() <= 1e-6 * their_gradient.norm()


class _double:
    """Make new tensors float64 for a while."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


def _as_double(problem: Problem) -> Problem:
    class Double(Problem):
        def of_class(self, label, rows=None):
            return super().of_class(label, rows).double()

    return Double(**{f: getattr(problem, f) for f in problem.__dataclass_fields__})


def test_dm_loss_is_zero_when_synthetic_equals_real():
    problem = small_problem(12)  # every image of every class
    method = make_method({"name": "dm", "filters": 8, "networks": 2, "real_batch": 100})
    state = State(torch.cat([problem.of_class(c) for c in range(problem.classes)]), problem.labels)
    state.memory |= method.setup(problem, Key(0)).memory
    assert float(method.loss(state, problem, range(3), Key(0))) < 1e-8


def test_dm_loss_falls():
    problem = small_problem(2)
    method = make_method({"name": "dm", "iterations": 40, "networks": 4, "filters": 16, "start": "noise"})
    losses: list[float] = []
    loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)), lambda _s, told: losses.extend(told))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_pool_reuses_targets_exactly():
    problem = small_problem(2)
    method = make_method({"name": "dm", "iterations": 4, "networks": 2, "filters": 8})
    state = loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    assert state.memory["known"].all()
    kept = state.memory["targets"].clone()
    state.memory["known"].zero_()
    method.loss(state, problem, range(3), Key(0))
    assert torch.equal(kept[0], state.memory["targets"][0])


def test_herding_first_pick_is_nearest_the_mean_and_mean_follows():
    features = torch.randn(200, 5, generator=Key(0).generator())
    chosen = herd(features, 20)
    mean = features.mean(0)
    assert chosen[0] == (features - mean).norm(dim=1).argmin()
    assert len(set(chosen.tolist())) == 20
    random = features[torch.randperm(200, generator=Key(1).generator())[:20]].mean(0)
    assert (features[chosen].mean(0) - mean).norm() < 0.2 * (random - mean).norm()


def test_k_centre_covers():
    centres = torch.eye(4) * 100
    features = (centres[:, None] + torch.randn(4, 25, 4, generator=Key(0).generator())).reshape(100, 4)
    assert {int(i) // 25 for i in farthest_first(features, 4)} == {0, 1, 2, 3}
    assert len(set(farthest_first(torch.zeros(5, 2), 5).tolist())) == 5


def test_k_means_takes_one_of_each_clump():
    problem = small_problem(5)
    state = make_method({"name": "k-means", "filters": 8}).setup(problem, Key(0))
    for label in range(problem.classes):
        assert len(torch.unique(state.images[problem.made(label)].flatten(1), dim=0)) == 5


def test_coresets_are_real_images_and_say_so():
    problem = small_problem(3)
    for name, method in methods().items():
        if method.info.kind == "coreset":
            assert method.info.contains_real_images
            assert "real patient images" in (method.__doc__ or "")
            made = problem.quantise(method().setup(problem, Key(0)).images)
            pool = {row.tobytes() for row in problem.pixels}
            assert all(row.numpy().tobytes() in pool for row in made), name


def test_quantise_inverts_normalise():
    problem = small_problem(1, colour=True)
    pixels = torch.from_numpy(problem.pixels)
    assert torch.equal(problem.quantise(problem.normalise(pixels)), pixels)


@pytest.mark.parametrize(
    ("sizes", "ratio", "expected"), [([200, 200], 0.01, 2), ([4000, 708], 0.01, 23), ([10, 10], 0.01, 1)]
)
def test_ratio(sizes, ratio, expected):
    assert images_per_class(sizes, None, ratio) == expected


@pytest.mark.parametrize(("ipc", "ratio"), [(None, None), (1, 0.1), (0, None), (11, None), (None, 0.0), (None, 1.0)])
def test_impossible_numbers_are_refused(ipc, ratio):
    with pytest.raises(ConfigError):
        images_per_class([10, 5], ipc, ratio)


def test_flips_are_drawn_only_where_they_keep_the_class():
    marked = torch.zeros(1, 1, 8, 8)
    marked[..., 0] = 1  # a bright left edge
    seen = {"none": False, "horizontal": False}
    for flips in seen:
        for seed in range(200):
            changed = siamese(Key(seed).generator(), flips)(marked)
            if torch.equal(changed, marked.flip(3)):
                seen[flips] = True
    assert seen == {"none": False, "horizontal": True}


def test_divergence_is_one_clear_line():
    @register
    class Broken(Method):
        """Diverges."""

        info = MethodInfo("broken-for-test", "Broken", 1, "distillation", "seconds", "@x")
        iterations: int = 3

        def loss(self, state, problem, classes, key):
            return (state.images * float("nan")).sum()

    try:
        problem = small_problem(1)
        method = make_method({"name": "broken-for-test"})
        with pytest.raises(loop.DivergenceError, match=r"NaN at step 1.*learning_rate"):
            loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    finally:
        from medistill.distil.method import _REGISTRY

        del _REGISTRY["broken-for-test"]


def test_unknown_method_and_setting_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'herding'"):
        make_method({"name": "herdng"})
    with pytest.raises(ConfigError, match=r"unknown setting 'method.iteratons'; did you mean 'iterations'"):
        make_method({"name": "dm", "iteratons": 3})
    with pytest.raises(ConfigError, match=r"method.iterations"):
        make_method({"name": "dm", "iterations": -3})
