"""One distillation shared by processes: the images of one process, and one process that speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import medistill
from medistill.distil.group import Group
from medistill.distil.method import make_method
from medistill.errors import ConfigError

DATA = "phantom:classes=3,images=36,size=16"
TOLERANCE = 2
"""Grey levels of 255 that rounding in another order may come to after a few steps."""


def torchrun(
    out: Path, method: str, *settings: str, processes: int = 2, program: tuple[str, ...] = ("-m", "medistill.cli")
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *program,
        "distill", DATA, "--method", method, "--ipc", "3", "--out", str(out), "--json", *settings,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dm", {"iterations": 6, "networks": 3, "filters": 8, "real_batch": 8}),
        ("dc", {"iterations": 2, "outer_loops": 2, "inner_loops": 1, "filters": 8, "real_batch": 8}),
    ],
)
def test_two_processes_give_the_images_of_one(tmp_path: Path, method: str, settings: dict[str, int]) -> None:
    given = {f"method.{name}": value for name, value in settings.items()} | {"optimiser.learning_rate": 1.0}
    sets = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    shared = torchrun(tmp_path / "two", method, *sets)
    assert shared.returncode == 0, shared.stderr
    assert len(shared.stdout.strip().splitlines()) == 1, "one process speaks"

    def alone(name: str, rate: float) -> np.ndarray:
        own = {"method": settings, "optimiser": {"learning_rate": rate}}
        medistill.distill(DATA, method=method, ipc=3, out=tmp_path / name, settings=own)
        return medistill.read_package(tmp_path / name).pixels.astype(int)

    one, two = alone("one", 1.0), medistill.read_package(tmp_path / "two").pixels.astype(int)
    assert abs(one - two).max() <= TOLERANCE and abs(one - two).mean() < 0.01
    assert abs(one - alone("start", 1e-6)).max() > 10 * TOLERANCE, "they did change, so agreement means something"
    again = torchrun(tmp_path / "two", method, *sets)
    assert again.returncode == 0 and json.loads(again.stdout)["package_id"] == json.loads(shared.stdout)["package_id"]


COUNTING = """
import sys
from medistill.cli import main
from medistill.distil import private_images

drawn = private_images.secret_normal

def counted(shape):
    with open({log!r}, "a") as log:
        log.write("noise\\n")
    return drawn(shape)

private_images.secret_normal = counted
main()
"""


def test_two_processes_add_the_noise_of_a_private_release_once(tmp_path: Path) -> None:
    program = tmp_path / "counting.py"
    program.write_text(COUNTING.format(log=str(tmp_path / "log")))
    quick = ("iterations=4", "networks=2", "filters=8")
    given = ("--epsilon", "4", *(word for setting in quick for word in ("--set", f"method.{setting}")))
    shared = torchrun(tmp_path / "two", "dm", *given, program=(str(program),))
    assert shared.returncode == 0, shared.stderr
    assert (tmp_path / "log").read_text() == 2 * "noise\n", "for the mean of all, and for the classes"
    assert medistill.read_package(tmp_path / "two").manifest.privacy.guarantee.epsilon == 4


def test_more_processes_than_classes(tmp_path: Path) -> None:
    given = ("--set", "method.iterations=2", "--set", "method.filters=8", "--set", "method.real_batch=4")
    assert torchrun(tmp_path / "four", "dm", *given, processes=4).returncode == 0


def test_a_joint_loss_is_refused(tmp_path: Path) -> None:
    shared = torchrun(tmp_path / "two", "mtt")
    assert shared.returncode != 0 and "whose loss is of all classes together" in shared.stderr
    assert not any(tmp_path.iterdir())


def test_what_the_first_process_alone_finds_wrong_ends_all(tmp_path: Path) -> None:
    """The others, which wait for it, learn that there is nothing to do."""
    given = ("--set", "method.iterations=1", "--set", "method.filters=8", "--set", "method.real_batch=4")
    medistill.distill(DATA, method="random", ipc=3, out=tmp_path / "p")
    shared = torchrun(tmp_path / "p", "dm", *given)
    assert shared.returncode != 0 and shared.stderr.count("another configuration") == 1
    assert "broadcast" not in shared.stderr and "exitcode: -" not in shared.stderr, "nobody had to be killed"


def test_own_classes_are_all_classes_once() -> None:
    for size in range(1, 6):
        every = [label for rank in range(size) for label in Group(rank, size).assigned(4)]
        assert sorted(every) == [0, 1, 2, 3]


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.arange(3.0)
    Group().add([tensor])
    assert tensor.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError):
        Group(0, 2).require_divisible(make_method({"name": "frepo"}))
