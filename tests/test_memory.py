"""A bound on memory: what fits, what is refused, and that dividing the work changes nothing but rounding."""

import pytest

import medistill
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.distil.memory import classes_within, estimate_mb, images_mb, parse_limit
from medistill.distil.method import make_method
from medistill.distil.problem import make_problem
from medistill.errors import ConfigError
from medistill.package.package import read_package
from medistill.testing import small_problem

SOURCE = "phantom:classes=4,images=80,size=16"
DM = {"method": {"iterations": 3, "networks": 2, "filters": 64, "real_batch": 8}}


@pytest.mark.parametrize("name", ["dm", "ncfm", "dc", "dsa"])
def test_fewer_classes_need_less(name):
    problem, method = small_problem(10), make_method({"name": name, "filters": 64})
    sizes = [estimate_mb(method, problem, n) for n in (1, 2, 3)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    assert classes_within(method, problem, sizes[1] + 0.001) == 2
    assert classes_within(method, problem, 1e6) == 3


@pytest.mark.parametrize("name", ["dm", "mtt", "frepo"])
def test_too_low_a_limit_is_refused_with_what_is_needed(name):
    problem, method = small_problem(10), make_method({"name": name})
    with pytest.raises(ConfigError, match=r"--memory-limit.*MB or more") as error:
        classes_within(method, problem, 10)
    assert "10 MB" in str(error.value)


@pytest.mark.parametrize("text", ["", "3 TB", "-1GB", "much", "0"])
def test_limits_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="3GB"):
        parse_limit(text)


def test_units():
    assert parse_limit("3GB") == 3000 and parse_limit("500 mb") == 500 and parse_limit("250") == 250


def test_divided_work_gives_the_same_images_up_to_rounding(tmp_path):
    prepared = prepare(load(SOURCE))
    problem = make_problem(prepared, 5, None)
    limit = estimate_mb(make_method({"name": "dm", **DM["method"]}), problem, 1, images_mb(prepared, problem)) + 0.01
    for name, asked in (("whole", None), ("divided", f"{limit} MB")):
        medistill.distill(SOURCE, out=tmp_path / name, method="dm", ipc=5, settings=DM, memory_limit=asked)
    whole, divided = (read_package(tmp_path / name).pixels.astype(int) for name in ("whole", "divided"))
    assert abs(whole - divided).max() <= 1
