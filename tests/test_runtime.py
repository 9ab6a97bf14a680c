"""Cores that a command may use."""

import os
import subprocess
import sys

import pytest
import torch

import medistill
from conftest import ROOT
from medistill import runtime
from medistill.runtime import child_environment, cpu_quota, usable_cores

sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_contention import quota_of_one_cpu


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes control groups: what a process is told of its own, and files by path below the mounted root."""

    def make(told: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(told)
        for name, text in files.items():
            (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / name).write_text(text)
        monkeypatch.setattr(runtime, "CONTROL_GROUP", tmp_path / "cgroup")
        monkeypatch.setattr(runtime, "CONTROL_GROUPS", tmp_path / "sys")

    return make


@pytest.mark.parametrize(
    ("told", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/batch/job\n", {"batch/cpu.max": "200000 100000\n", "batch/job/cpu.max": "max 100000\n"}, 2),
        ("0::/batch/job\n", {"batch/cpu.max": "200000 100000\n", "batch/job/cpu.max": "50000 100000\n"}, 0.5),
        # A container's path outside; inside, its group is the root.
        ("0::/docker/1a2b\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "1:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "50000"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("2:cpuset:/\n9:name=systemd:/\n", {"cpuset/cpu.max": "100000 100000\n"}, None),
    ],
)
def test_the_quota_is_that_of_the_tightest_group(told, files, cpus, groups):
    groups(told, files)
    assert cpu_quota() == cpus


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("150000", 2), ("20000", 1), ("max", 8), ("1600000", 8)])
def test_cores_follow_affinity_and_quota_and_what_the_user_set(quota, cores, groups, monkeypatch):
    groups("0::/\n", {"cpu.max": f"{quota} 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usable_cores() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_cores() == 3


def test_a_process_in_a_group_of_one_cpu_uses_one():
    """A real control group, where this process may make one."""
    code = (
        "from medistill.runtime import prepare_torch, usable_cores\n"
        "prepare_torch()\nimport torch\nprint(usable_cores(), torch.get_num_threads())"
    )
    environment = child_environment(1)
    del environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]
    with quota_of_one_cpu() as prefix:
        if prefix is None:
            pytest.skip("no control group with a quota can be made here")
        command = [*prefix, sys.executable, "-c", code]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.stdout.split() == ["1", "1"], answer.stderr


def test_threads_asked_for_are_those_that_a_command_and_its_workers_use(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back at the end
    before, said = torch.get_num_threads(), []
    monkeypatch.setattr(medistill, "train", lambda *_, **__: said.append((usable_cores(), torch.get_num_threads())))
    try:
        cli("train", tmp_path, "--on", tmp_path, "--threads", 3, "--json")
    finally:
        torch.set_num_threads(before)
    assert said == [(3, 3)]
