"""Engines: real clusters on this machine, bound to the loopback address, and a worker killed in the middle."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from joblib.parallel import ThreadingBackend

import medistill
from medistill.errors import MedistillError
from medistill.files import CACHE_VARIABLE
from medistill.records.store import Store
from medistill.study import engines
from studies import begin_processes_with, write

BIN = Path(sys.executable).parent
FIGURES = {}
"""What one process gave, to compare the engines with."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers at port {port}")


def figures(database):
    with Store(database) as store:
        return [row for row in store.figures() if row[3] != "cost"]


def kill_one(find, database):
    """Once a run is recorded and another goes on, kill the worker that ``find`` names."""

    def watch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.05)
            try:
                with Store(database) as store:
                    recorded = len(store.runs())
                worker = find() if recorded else None
                if worker is None:
                    continue
                os.kill(worker, signal.SIGKILL)
            except (MedistillError, OSError):  # not made yet, or ended meanwhile
                continue
            killed.append(worker)
            return

    killed = []
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return killed


def busy_parent(words):
    """The process below this one whose command line has these words and that has a run of ours below it."""
    # Not psutil, which takes a process for another one where the machine corrects its clock meanwhile.
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    told = {row[0]: row[2] for row in rows if len(row) == 3}
    above = {row[0]: row[1] for row in rows}

    def ours(process):
        return process == str(os.getpid()) or (process in above and ours(above[process]))

    for row in rows:
        # Tests in other processes have runs too.
        if "medistill.study.work" in row[-1] and words in told.get(row[1], "") and ours(row[1]):
            return int(row[1])
    return None


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of six short runs with a cache of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return write(tmp_path, methods=["random", "herding", "k-means"])


def check(study, killed, **engine):
    result = medistill.study_run(study, processes=2, **engine)
    assert killed, "nothing was killed"
    assert (result["done"], result["failed"], result["ran"]) == (6, 0, 6)
    with Store(study.with_suffix(".db")) as store:
        starts = [run.starts for run in store.runs()]
    assert sum(starts) <= 8, f"runs that were not on the dead worker began anew: {starts}"
    found = figures(study.with_suffix(".db"))
    assert len(found) > 100 and FIGURES.setdefault("all", found) == found


def test_joblib_loses_a_worker(study):
    check(study, kill_one(lambda: busy_parent("loky"), study.with_suffix(".db")))


def test_a_study_that_is_stopped_shows_no_traceback(monkeypatch):
    """Stopped, joblib's thread that hands out work finds it gone: a KeyError of that thread, and of no other."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda problem: told.append(problem.thread.name))
    hook = threading.excepthook

    def fail(name, problem):
        def run():
            raise problem

        thread = threading.Thread(target=run, name=name)
        thread.start()
        thread.join()

    with engines.quiet_when_stopped():
        fail("ExecutorManagerThread", KeyError(7))
        fail("ExecutorManagerThread", OSError("full"))
        fail("other", KeyError(7))
    assert told == ["ExecutorManagerThread", "other"] and threading.excepthook is hook


@contextmanager
def dask_cluster(workers=2):
    pytest.importorskip("distributed", reason="dask is not installed")
    port = free_port()
    here = ["--host", "127.0.0.1"]
    commands = [[str(BIN / "dask"), "scheduler", *here, "--port", str(port), "--no-dashboard"]]
    worker = [str(BIN / "dask"), "worker", f"tcp://127.0.0.1:{port}", *here, "--nthreads", "1", "--no-dashboard"]
    commands += [[*worker, "--no-nanny"]] * workers
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        wait_for(port)
        yield f"tcp://127.0.0.1:{port}"
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_dask_loses_a_worker(study):
    with dask_cluster() as address:
        killed = kill_one(lambda: busy_parent("dask"), study.with_suffix(".db"))
        check(study, killed, engine="dask", address=address)


@contextmanager
def ray_cluster():
    """Two nodes of one slot each."""
    pytest.importorskip("ray", reason="ray is not installed")
    port = free_port()
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats", "--block"]
    head = ["start", "--head", f"--port={port}", "--include-dashboard=false", *common]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    nodes = [subprocess.Popen([str(BIN / "ray"), *head], **quiet)]
    try:
        wait_for(port)
        nodes.append(subprocess.Popen([str(BIN / "ray"), "start", f"--address=127.0.0.1:{port}", *common], **quiet))
        yield f"127.0.0.1:{port}"
    finally:
        below = [child for node in nodes for child in psutil.Process(node.pid).children(recursive=True)]
        for process in [*nodes, *below]:
            process.kill()


@pytest.mark.slow
def test_ray_loses_a_worker(study):
    with ray_cluster() as address:
        killed = kill_one(lambda: busy_parent("ray::"), study.with_suffix(".db"))
        check(study, killed, engine="ray", address=address)


def test_the_only_worker_does_the_runs_not_the_machine_that_asks(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="dask is not installed")
    code = "import os\nimport medistill.study.work as work\nwork.do = lambda *_: {'doer': os.getpid()}\n"
    begin_processes_with(code, tmp_path, monkeypatch)
    todo, doers = [SimpleNamespace(identity=str(i), specification={}, stage=0) for i in range(3)], []
    with dask_cluster(workers=1) as address:
        engines.execute(todo, "dask", address, 1, 1, lambda run, outcome: doers.append(outcome["doer"]))
    assert len(doers) == 3 and len(set(doers)) == 1 and os.getpid() not in doers


def test_a_ray_cluster_may_take_its_time_but_needs_two_slots(monkeypatch):
    """With something that is asked like Ray, whose nodes come one after the other."""
    growing, asked = iter([0, 1, 1, 2]), []

    class Backend(ThreadingBackend):
        def configure(self, n_jobs=1, parallel=None, **settings):
            asked.append(n_jobs)
            return super().configure(n_jobs, parallel, **settings)

    ray = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None)
    ray.cluster_resources = lambda: {"CPU": float(next(growing))}
    for name in ("ray", "ray.util", "ray.util.joblib"):
        monkeypatch.setitem(sys.modules, name, ray)
    monkeypatch.setitem(sys.modules, "ray.util.joblib.ray_backend", SimpleNamespace(RayBackend=Backend))
    monkeypatch.setattr(engines, "do", lambda *_: {})
    todo = [SimpleNamespace(identity="0", specification={}, stage=0)]
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        engines.execute(todo, "ray", address, 1, 1, lambda *_: None)
        assert asked == [2] and next(growing, None) is None
        ray.cluster_resources = lambda: {"CPU": 1.0}
        monkeypatch.setattr(engines, "SECONDS_FOR_NODES", 0.3)
        refused = rf"--engine ray --address {address}: has 1 CPU; allowed: at least 2"
        with pytest.raises(MedistillError, match=refused):
            engines.execute(todo, "ray", address, 1, 1, lambda *_: None)


def test_an_engine_that_is_not_there_is_one_line(study):
    pytest.importorskip("ray", reason="ray is not installed")
    for engine in ("dask", "ray"):
        with pytest.raises(MedistillError, match=f"--engine {engine} --address .*: cannot be reached"):
            medistill.study_run(study, engine=engine, address=f"127.0.0.1:{free_port()}")
