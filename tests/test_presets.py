"""Presets: every file is valid, says what the papers say, and is found by name."""

import pytest

import medistill
from medistill.config import DistilConfig, OptimiserConfig
from medistill.distil.configuration import configured, optimiser_of
from medistill.distil.method import make_method, methods
from medistill.distil.presets import default_settings, merged, presets, read_preset
from medistill.errors import ConfigError
from medistill.package.package import read_package
from medistill.testing import small_problem


def test_every_file_builds_its_method_and_sets_nothing_unknown():
    assert presets()
    for method, names in presets().items():
        for name in names:
            settings = read_preset(method, name)
            assert make_method(settings["method"]).configuration().items() >= settings["method"].items()
            optimiser = OptimiserConfig(**settings["optimiser"])
            assert optimiser.model_dump(exclude_unset=True) == settings["optimiser"]


def of(name, problem, preset=None):
    """A method at a preset, and what moves its images."""
    method, config = configured(name, 1, None, preset, {}, {})
    return method, optimiser_of(method, config, problem)


def test_published_settings():
    ten, hundred = small_problem(10), small_problem(100, images=360)
    (dm, moved), (_, of_hundred) = of("dm", ten, "paper"), of("dm", hundred, "paper")
    assert (dm.iterations, dm.networks, dm.real_batch, dm.filters) == (20000, 0, 256, 128)
    assert (moved.name, moved.learning_rate, moved.momentum) == ("sgd", 1, 0.5) and of_hundred.learning_rate == 10
    for name in ("dc", "dsa"):
        method, moved = of(name, ten, "paper")
        assert (method.iterations, method.real_batch, method.filters) == (1000, 256, 128)
        assert (moved.name, moved.learning_rate, moved.momentum) == ("sgd", 0.1, 0.5)
        assert method.network_learning_rate == 0.01 and method.augment == (name == "dsa")
    mtt, moved = of("mtt", ten, "paper")
    assert (mtt.iterations, mtt.experts, mtt.expert_epochs, mtt.filters) == (5000, 100, 50, 128)
    assert (moved.name, moved.learning_rate, moved.momentum) == ("sgd", 1000, 0.5)
    starts = {name: of(name, ten, "paper")[0].starts_from_real_images for name in ("dm", "dc", "dsa", "mtt")}
    assert starts == {"dm": True, "dc": False, "dsa": True, "mtt": True}


@pytest.mark.parametrize(
    ("images", "rate", "schedule"), [(1, 5, "cosine"), (39, 5, "cosine"), (40, 5, "constant"), (200, 25, "constant")]
)
def test_from_noise_dm_learns_few_images_by_smaller_steps_and_many_at_a_higher_rate(images, rate, schedule):
    _, moved = of("dm", small_problem(images, images=720))
    assert (moved.learning_rate, moved.schedule) == (rate, schedule)


def test_no_method_starts_from_real_images_unless_it_is_asked_to():
    for name, method in methods().items():
        if method.info.kind == "distillation":
            assert not make_method({"name": name}).starts_from_real_images
            settings = [read_preset(name, preset)["method"] for preset in presets()[name] if preset != "paper"]
            assert not any(make_method(given).starts_from_real_images for given in settings)
    assert not make_method(default_settings()["method"]).starts_from_real_images


def test_every_distillation_has_a_quick_setting_that_does_less_than_the_published_one():
    problem = small_problem(10)
    for name, method in methods().items():
        if method.info.kind == "distillation":
            quick, _ = of(name, problem, "quick")
            usual, _ = of(name, problem, "paper" if "paper" in presets()[name] else None)
            assert quick.steps(problem) <= min(800, usual.steps(problem)) and quick.filters <= 64


def test_unknown_presets():
    with pytest.raises(ConfigError, match="allowed: paper, quick"):
        read_preset("dm", "papr")
    with pytest.raises(ConfigError, match="its only setting"):
        read_preset("random", "paper")
    with pytest.raises(ConfigError, match="did you mean"):
        read_preset("dmm", "paper")


def test_own_settings_win_over_the_preset(cli, tmp_path):
    sets = ["--set", "method.iterations=2", "--set", "method.filters=8", "--set", "method.real_batch=8"]
    source = "phantom:classes=3,images=36,size=16"
    assert cli("distill", source, "--preset", "paper", "--ipc", 1, "--out", tmp_path / "p", *sets)[0] == 0
    method = read_package(tmp_path / "p").manifest.method.settings
    assert (method["iterations"], method["networks"], method["filters"]) == (2, 0, 8)


def test_own_optimiser_wins_over_the_preset_value_by_value():
    own = {"optimiser": {"momentum": 0.9}}
    method, config = configured("dc", 1, None, "quick", own, {})
    found = optimiser_of(method, config, small_problem(1))
    assert (found.learning_rate, found.momentum) == (1.0, 0.9), "the preset's rate, not the method's 0.1"
    method, config = configured("dc", 1, None, "quick", own, {"optimiser.learning_rate": 2.0})
    assert optimiser_of(method, config, small_problem(1)).learning_rate == 2
    with pytest.raises(ConfigError, match="none: random learns nothing"):
        configured("random", 1, None, None, own, {})


def test_presets_are_of_methods_that_there_are():
    assert set(presets()) <= set(methods())


TINY = {
    "method": {"iterations": 2, "networks": 1, "filters": 8, "real_batch": 4},
    "labels": {"recipe": {"min_steps": 2, "max_steps": 2, "width": 8}},
}


def configuration(package):
    """The configuration that a package was made by."""
    return DistilConfig.model_validate(read_package(package).manifest.provenance.configuration.model_dump())


def test_without_a_method_the_recommended_configuration_is_taken(tmp_path):
    recommended = default_settings()
    source = "phantom:classes=2,images=20,size=16"
    medistill.distill(source, out=tmp_path / "p", ipc=1, settings=TINY)
    found = configuration(tmp_path / "p")
    assert found.method["name"] == recommended["method"]["name"] and found.method["iterations"] == 2
    assert recommended["factor"] is None and found.factor == 2
    assert found.labels.teachers == recommended["labels"]["teachers"] != 0
    medistill.distill(source, out=tmp_path / "q", ipc=1, factor=1, teachers=0, settings=TINY)
    plain = configuration(tmp_path / "q")
    assert plain.factor == 1 and plain.labels.teachers == 0


def test_large_pictures_are_stored_at_a_quarter_of_the_side(tmp_path):
    source = "phantom:classes=2,images=40,size=96"
    medistill.distill(source, out=tmp_path / "p", ipc=1, settings=TINY)
    assert configuration(tmp_path / "p").factor == 4
    assert read_package(tmp_path / "p").stored_shape == (24, 24)
    medistill.distill(source, out=tmp_path / "q", ipc=1, factor=2, settings=TINY)
    assert configuration(tmp_path / "q").factor == 2
    assert medistill.distill(source, out=tmp_path / "p", ipc=1, settings=TINY)["images"] == 32, "found finished"


def test_a_method_that_is_named_comes_plain(tmp_path):
    medistill.distill("phantom:classes=2,images=20,size=16", out=tmp_path / "p", method="dm", ipc=1, settings=TINY)
    found = configuration(tmp_path / "p")
    assert found.factor == 1 and found.labels.teachers == 0


def test_sections_are_merged_value_by_value():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": None}) == {"a": {"b": 1, "c": 4}, "d": None}
