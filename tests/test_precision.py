"""Lower precision where the processor has it: nearly the same losses and gradients, decided once and recorded."""

import pytest
import torch

import medistill
from medistill.distil import configuration, networked
from medistill.distil.method import make_method
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.package.package import read_package
from medistill.runtime import device, has_bfloat16
from medistill.testing import small_problem
from problems import step

SMALL = {"filters": 32, "real_batch": 12}
SOURCE = "phantom:classes=3,images=36,size=16"


@pytest.mark.parametrize("name", ["dm", "ncfm", "dc", "dsa", "frepo"])
def test_bfloat16_gives_nearly_the_loss_and_gradient_of_float32(name):
    problem, found = small_problem(4, size=28), {}
    for precision in ("float32", "bfloat16"):
        method = make_method({"name": name, **SMALL, "precision": precision, "start": "noise"})
        found[precision] = step(method, method.setup(problem, Key(0)), problem, Key(0))
        assert found[precision].loss.dtype == found[precision].images.dtype == torch.float32
    plain, half = found["float32"], found["bfloat16"]
    assert half.loss.item() == pytest.approx(plain.loss.item(), rel=0.03) and half.loss != plain.loss
    slopes = plain.images.flatten(), half.images.flatten()
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.98


def test_a_network_trained_on_the_images_in_bfloat16_is_nearly_that_of_float32():
    problem, found = small_problem(4, size=28), {}
    for precision in ("float32", "bfloat16"):
        method = make_method({"name": "dc", **SMALL, "precision": precision, "outer_loops": 2, "inner_loops": 20})
        state = method.setup(problem, Key(0))
        start = method.network(problem).parameters(Key(0).child("network", 0))
        method.after_update(state, problem, Key(0), {})
        trained = {name.removeprefix("network."): tensor for name, tensor in state.buffers.items()}
        assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
        found[precision] = torch.cat([(trained[name] - start[name]).flatten() for name in start])
    plain, half = found.values()
    assert torch.nn.functional.cosine_similarity(plain, half, dim=0) > 0.98 and not torch.equal(plain, half)


@pytest.mark.parametrize(("kind", "capable"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch, kind, capable):
    monkeypatch.setattr(networked, "device", lambda: torch.device(kind))
    monkeypatch.setattr(networked, "has_bfloat16", lambda: capable)
    chosen, _ = configuration.configured(None, 10, None, None, {}, {})
    assert chosen.precision == ("bfloat16" if kind == "cuda" and capable else "float32")


def test_what_auto_decided_is_recorded(tmp_path):
    settings = {"method": {"iterations": 2, "networks": 2, **SMALL}, "labels": {"teachers": 0}}
    made = medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, settings=settings)
    kept = read_package(made["package"]).manifest.method
    assert kept.settings["precision"] == ("float32" if device().type == "cpu" or not has_bfloat16() else "bfloat16")


def test_a_precision_that_a_method_does_not_compute_in_is_refused():
    with pytest.raises(ConfigError, match=r"method\.precision"):
        make_method({"name": "mtt", "precision": "bfloat16"})


def test_a_named_method_is_float32(monkeypatch):
    monkeypatch.setattr(networked, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(networked, "has_bfloat16", lambda: True)
    chosen, _ = configuration.configured("dm", 10, None, None, {}, {})
    assert chosen.precision == "float32"
