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

import joblib
import psutil
import pytest

import medistill
from medistill.errors import MedistillError
from medistill.files import CACHE_VARIABLE
from medistill.store import Store
from medistill.study import engines
from studies import write

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


STOPPED = """
import signal, threading, time
from types import SimpleNamespace
from medistill.study import engines

def slow(identity, *_):
    time.sleep(0.5)
    return identity, {}

engines._do = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background was told to ignore it
hook = threading.excepthook
try:
    with engines._engine("joblib", None, 2, 1):
        # More than wait in joblib's queue, so that its thread has some left to hand out.
        todo = [SimpleNamespace(identity=str(i), specification={}) for i in range(40)]
        engines._round(todo, 1, None, lambda identity, _: print(identity, flush=True))
except KeyboardInterrupt:
    print("stopped", threading.excepthook is hook)
"""


def test_a_study_that_is_stopped_shows_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    time.sleep(0.1)  # right after the next is handed out it shows without fail
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped True" and "Traceback" not in err, err


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


def test_ray_loses_a_worker(study):
    with ray_cluster() as address:
        killed = kill_one(lambda: busy_parent("ray::"), study.with_suffix(".db"))
        check(study, killed, engine="ray", address=address)


def test_the_only_worker_does_the_runs_not_the_machine_that_asks():
    pytest.importorskip("distributed", reason="dask is not installed")
    with dask_cluster(workers=1) as address, engines._engine("dask", address, 1, 1):
        doers = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(3))
    assert len(set(doers)) == 1 and os.getpid() not in doers


def test_a_ray_cluster_may_take_its_time_but_needs_two_slots(monkeypatch):
    growing = iter([0, 1, 1, 2])
    assert engines._slots(lambda: next(growing), "here:1") == 2
    monkeypatch.setattr(engines, "SECONDS_FOR_NODES", 0.3)
    with pytest.raises(MedistillError, match=r"--engine ray --address here:1: has 1 CPU; allowed: at least 2"):
        engines._slots(lambda: 1, "here:1")


def test_an_engine_that_is_not_there_is_one_line(study):
    pytest.importorskip("ray", reason="ray is not installed")
    for engine in ("dask", "ray"):
        with pytest.raises(MedistillError, match=f"--engine {engine} --address .*: cannot be reached"):
            medistill.study_run(study, engine=engine, address=f"127.0.0.1:{free_port()}")
