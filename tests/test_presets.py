"""Presets: every file is valid, says what the papers say, and is found by name."""

import pytest

import medistill
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
            assert make_method({"name": method, **settings}).configuration().items() >= settings.items()


def test_published_settings():
    dm, dc, dsa = (make_method({"name": n, **read_preset(n, "paper")}) for n in ("dm", "dc", "dsa"))
    assert (dm.iterations, dm.networks, dm.real_batch, dm.filters, dm.momentum) == (20000, 0, 256, 128, 0.5)
    assert dm.image_learning_rate(small_problem(10)) == 1 and dm.starts_from_real_images
    assert dm.image_learning_rate(small_problem(100, images=360)) == 10
    for method in (dc, dsa):
        assert (method.iterations, method.real_batch, method.filters) == (1000, 256, 128)
        assert (method.learning_rate, method.momentum, method.network_learning_rate) == (0.1, 0.5, 0.01)
    assert not dc.augment and dsa.augment and dc.start == "noise" and dsa.start == "real"


def test_every_distillation_has_a_quick_setting_that_does_less_than_the_published_one():
    problem = small_problem(10)
    for name, method in methods().items():
        if method.info.kind == "distillation":
            quick = make_method({"name": name, **read_preset(name, "quick")})
            usual = make_method(
                {"name": name, **read_preset(name, "paper")} if "paper" in presets()[name] else {"name": name}
            )
            assert quick.steps(problem) <= min(400, usual.steps(problem)) and quick.filters <= 64


def test_unknown_presets():
    with pytest.raises(ConfigError, match="allowed: paper, quick"):
        read_preset("dm", "papr")
    with pytest.raises(ConfigError, match="its only setting"):
        read_preset("random", "paper")
    with pytest.raises(ConfigError, match="did you mean"):
        read_preset("dmm", "paper")


def test_own_settings_win_over_the_preset(cli, tmp_path):
    import json

    sets = ["--set", "method.iterations=2", "--set", "method.filters=8", "--set", "method.real_batch=8"]
    source = "phantom:classes=3,images=36,size=16"
    assert cli("distill", source, "--preset", "paper", "--ipc", 1, "--out", tmp_path / "p", *sets)[0] == 0
    method = json.loads((tmp_path / "p" / "manifest.json").read_text())["configuration"]["method"]
    assert (method["iterations"], method["networks"], method["filters"]) == (2, 0, 8)
    assert set(presets()) <= set(methods())


TINY = {
    "method": {"iterations": 2, "networks": 1, "filters": 8, "real_batch": 4},
    "labels": {"recipe": {"least_steps": 2, "most_steps": 2, "width": 8}},
}


def test_without_a_method_the_recommended_configuration_is_taken(tmp_path):
    recommended = default_settings()
    source = "phantom:classes=2,images=20,size=16"
    medistill.distill(source, out=tmp_path / "p", ipc=1, settings=TINY)
    made = read_package(tmp_path / "p").manifest["configuration"]
    assert made["method"]["name"] == recommended["method"]["name"] and made["method"]["iterations"] == 2
    assert made["factor"] == recommended["factor"]
    assert made["labels"]["teachers"] == recommended["labels"]["teachers"]
    medistill.distill(source, out=tmp_path / "q", ipc=1, factor=1, teachers=0, settings=TINY)
    plain = read_package(tmp_path / "q").manifest["configuration"]
    assert plain["factor"] == 1 and plain["labels"]["teachers"] == 0


def test_a_method_that_is_named_comes_plain(tmp_path):
    medistill.distill("phantom:classes=2,images=20,size=16", out=tmp_path / "p", method="dm", ipc=1, settings=TINY)
    made = read_package(tmp_path / "p").manifest["configuration"]
    assert made["factor"] == 1 and made["labels"]["teachers"] == 0


def test_sections_are_merged_value_by_value():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": None}) == {"a": {"b": 1, "c": 4}, "d": None}
