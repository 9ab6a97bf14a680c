"""Each method against its formula, and all of them against the contract."""

import numpy as np
import pytest
import torch

import medistill
from conftest import TINY
from medistill.augment import siamese
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import prepare
from medistill.distil import loop
from medistill.distil.method import LearnedMethod, MethodInfo, State, make_method, methods
from medistill.distil.methods.herding import herd
from medistill.distil.methods.kcentre import farthest_first
from medistill.distil.optimiser import Optimiser
from medistill.distil.problem import images_per_stratum, make_problem
from medistill.distil.real_images import RealImages
from medistill.errors import ConfigError
from medistill.evaluation.protocol import ARMS
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.testing import MethodConformance, small_problem
from problems import drawn, every_real_image, float64, step
from reference import distribution_matching

SMALL = {
    "dm": {"iterations": 3, "networks": 2, "filters": 8, "real_batch": 8},
    "dc": {"iterations": 2, "outer_loops": 2, "inner_loops": 1, "filters": 8, "real_batch": 8},
    "dsa": {"iterations": 2, "outer_loops": 2, "inner_loops": 1, "filters": 8, "real_batch": 8},
    "ncfm": {"iterations": 3, "networks": 2, "filters": 8, "real_batch": 8, "frequencies": 16},
    "mtt": {
        "iterations": 3,
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
    # The rate of mtt is 1000.
    _own = {"method": _name, "settings": SMALL.get(_name, {})} | ({"rounding": 1e-3} if _name == "mtt" else {})
    globals()[_class] = type(_class, (MethodConformance,), _own)


class TestConformanceDMAsPublished(MethodConformance):
    method = "dm"
    settings = {**SMALL["dm"], "networks": 0, "start": "real"}


@pytest.mark.parametrize("name", ["random", "herding", "k-centre", "k-means", "dm"])
def test_no_image_stands_for_two_findings_while_others_are_left(name):
    problem = small_problem(8, task="findings", images=200)
    settings = {"start": "real", "iterations": 1} if name == "dm" else {}
    problem = problem.queried_by((*make_method({"name": name}).queries, "draw"))
    state = make_method({"name": name, **settings}).setup(problem, Key(0))
    assert len(np.unique(state.images.flatten(1).numpy(), axis=0)) == len(state.images) == 32


def test_a_ratio_is_of_images_where_one_has_several_findings():
    problem = small_problem(1, task="findings", images=200)
    sizes, images = list(problem.real_per_stratum), len(problem.real)
    assert sum(sizes) > images
    assert images_per_stratum(sizes, None, 0.5, "finding", images) == images // 2 // len(sizes)


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
@float64()
def test_dm_equals_the_obvious_loop(networks, augment):
    """Oracle: loss and image gradient in float64, class by class."""
    problem, key = small_problem(3, size=28, images=30), Key(4)
    method = make_method(
        {"name": "dm", "networks": networks, "filters": 6, "real_batch": 5, "augment": augment, "iterations": 9}
    )
    state = method.setup(problem, key)
    state.step = 1
    ours = step(method, state, problem, key)

    here, strata = key.child("network", 1), range(problem.strata)
    parameters = ConvNet(problem.channels, problem.shape, problem.outputs, 6).parameters(here)
    flips = problem.normalisation.flips
    augmentations = [siamese(here.child("augment", c).generator(), flips) for c in strata]
    model = distribution_matching.convnet(1, 28, 6)
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters.values(), strict=False):
            own.copy_(given)
    images = state.images.detach().clone().requires_grad_(True)
    theirs = distribution_matching.loss(
        model,
        [images[problem.synthetic(c)] for c in strata],
        [drawn(problem, c, 5, here.child("real", c))[0] for c in strata],
        (lambda c, x: augmentations[c](x)) if augment else (lambda c, x: x),
    )
    (their_gradient,) = torch.autograd.grad(theirs, images)
    assert ours.images.dtype == torch.float64
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert (ours.images - their_gradient).norm() <= 1e-6 * their_gradient.norm()


def test_dm_loss_is_zero_when_synthetic_equals_real():
    problem = small_problem(12)  # every image of every class
    method = make_method({"name": "dm", "filters": 8, "networks": 2, "real_batch": 100})
    state = State(every_real_image(problem), problem.targets, method.setup(problem, Key(0)).buffers)
    assert float(step(method, state, problem, Key(0)).loss) < 1e-8


def test_dm_loss_falls():
    problem = small_problem(2)
    method = make_method({"name": "dm", "iterations": 40, "networks": 4, "filters": 16, "start": "noise"})
    losses: list[float] = []
    loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)), lambda _s, told: losses.extend(told))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_real_images_are_asked_once_for_each_network_of_the_pool(monkeypatch):
    asked, mean = [], RealImages.mean

    def counted(self, statistic, stratum, count, key):
        asked.append(stratum)
        return mean(self, statistic, stratum, count, key)

    monkeypatch.setattr(RealImages, "mean", counted)
    problem = small_problem(2)
    method = make_method({"name": "dm", "iterations": 6, "networks": 2, "filters": 8})
    state = loop.run(method, problem, Key(0), loop.start(method, problem, Key(0)))
    assert sorted(asked) == [0, 0, 1, 1, 2, 2] and state.buffers["known"].all()
    kept = state.buffers["means"].clone()
    state.buffers["known"].zero_()
    state.buffers["means"].zero_()
    method.observe(state, problem, range(3), Key(0))  # at step 6 the first network again
    assert torch.equal(kept[0], state.buffers["means"][0]) and not state.buffers["means"][1].any()


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
    for stratum in range(problem.strata):
        assert len(torch.unique(state.images[problem.synthetic(stratum)].flatten(1), dim=0)) == 5


@pytest.mark.parametrize("task", ["classes", "findings"])
def test_coresets_are_real_images_with_their_own_targets_and_say_so(task):
    prepared = prepare(make_phantom(Phantom(classes=3, images=36, size=16, task=task)))
    problem, data = make_problem(prepared, 3, None), prepared.train
    for name, method in methods().items():
        if method.info.kind == "coreset":
            assert method.info.contains_real_images
            assert "real patient images" in (method.__doc__ or "")
            state = method().setup(problem, Key(0))
            chosen = zip(problem.quantise(state.images).numpy(), state.targets.numpy(), strict=True)
            pool = {(row.tobytes(), target.tobytes()) for row, target in zip(data.pixels, data.targets, strict=True)}
            assert all((row.tobytes(), target.tobytes()) in pool for row, target in chosen), name


def test_quantise_inverts_normalise():
    problem = small_problem(1, colour=True)
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 256).reshape(2, 3, 16, 16)
    assert torch.equal(problem.quantise(problem.normalisation.normalise(pixels)), pixels)


@pytest.mark.parametrize(
    ("sizes", "ratio", "expected"), [([200, 200], 0.01, 2), ([4000, 708], 0.01, 23), ([10, 10], 0.01, 1)]
)
def test_ratio(sizes, ratio, expected):
    assert images_per_stratum(sizes, None, ratio) == expected


@pytest.mark.parametrize(("ipc", "ratio"), [(None, None), (1, 0.1), (0, None), (11, None), (None, 0.0), (None, 1.0)])
def test_impossible_numbers_are_refused(ipc, ratio):
    with pytest.raises(ConfigError):
        images_per_stratum([10, 5], ipc, ratio)


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
    class Broken(LearnedMethod):
        """Diverges."""

        info = MethodInfo("broken", "Broken", 1, "distillation", "seconds", "@x")

        def loss(self, state, observed, problem, strata, key):
            return (state.images * float("nan")).sum()

    problem, method = small_problem(1), Broken(iterations=3)
    start, optimiser = loop.start(method, problem, Key(0)), Optimiser(learning_rate=0.25)
    with pytest.raises(loop.DivergenceError, match=r"NaN at step 1.*optimiser\.learning_rate \(now 0\.25\)"):
        loop.run(method, problem, Key(0), start, optimiser=optimiser)


def test_unknown_method_and_setting_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'herding'"):
        make_method({"name": "herdng"})
    with pytest.raises(ConfigError, match=r"unknown setting 'method.iteratons'; did you mean 'iterations'"):
        make_method({"name": "dm", "iteratons": 3})
    with pytest.raises(ConfigError, match=r"method.iterations"):
        make_method({"name": "dm", "iterations": -3})
    with pytest.raises(ConfigError, match=r"unknown setting 'method\.momentum'.*optimiser\.momentum"):
        make_method({"name": "dm", "momentum": 0.9})
