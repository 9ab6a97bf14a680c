"""Where a study's runs are done: processes of this machine, or a Ray or Dask cluster, all through joblib.

The engines differ in where a run is put, never in what it does: each is a process of its own
with as many threads as asked for, so the figures are the same.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from medistill.aliases import Json
from medistill.errors import ConfigError, MedistillError
from medistill.runtime import DEVICE_VARIABLE
from medistill.study.plan import PlannedRun
from medistill.study.work import do

ENGINES = ("joblib", "ray", "dask")
LEAST_SLOTS = 2
"""Told of fewer, joblib would do every run itself, on the machine that asks."""

SECONDS_FOR_NODES = 60
"""How long nodes of a Ray cluster that has just been started may take to come."""

VAIN = 3
"""How often runs are handed out without any being done, because workers die, before that is an error."""


class EngineError(MedistillError):
    """An engine could not be reached, or loses its workers again and again."""


def execute(
    runs: list[PlannedRun],
    engine: str,
    address: str | None,
    processes: int,
    threads: int,
    done: Callable[[PlannedRun, Json], None],
) -> None:
    """Do all runs, stage by stage, and report each as it ends.

    A run that was on a worker that died is handed out again. On a cluster the others go on; on this machine joblib
    ends all its processes with one, and what they were doing begins anew.

    Args:
        runs: what to do.
        engine: "joblib", "ray" or "dask".
        address: of the cluster; none for joblib, and for Ray or Dask where one should be started here.
        processes: how many at once on this machine; a cluster decides by itself.
        threads: of each run.
        done: told each run with its outcome, in this thread.

    Raises:
        ConfigError: an engine that is not installed or not known.
        EngineError: the cluster cannot be reached, or workers die again and again.
    """
    left = {run.identity: run for run in runs}
    with _engine(engine, address, processes, threads):
        for stage in sorted({run.stage for run in runs}):
            vain = 0
            while todo := [run for run in left.values() if run.stage == stage]:
                asked_by = os.getpid() if engine == "joblib" else None
                problem = _round(todo, threads, asked_by, lambda identity, outcome: done(left.pop(identity), outcome))
                vain = vain + 1 if len(todo) == sum(run.stage == stage for run in left.values()) else 0
                if vain < VAIN:
                    continue
                lost = [run for run in left.values() if run.stage == stage]
                raise EngineError(
                    f"workers died {VAIN} times before any run was done ({problem})",
                    where=lost[0].title,
                    remedy="look at their memory; what is done is kept, the same command goes on",
                )


def _round(
    todo: list[PlannedRun], threads: int, asked_by: int | None, done: Callable[[str, Json], None]
) -> str | None:
    """Hand out runs once; what is told if workers were lost on the way."""
    from joblib import Parallel, delayed

    parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
    with quiet_when_stopped():
        outcomes: Iterator[tuple[str, Json]] = parallel(
            delayed(_do)(run.identity, run.specification, threads, os.environ.get(DEVICE_VARIABLE), asked_by)
            for run in todo
        )
        while True:
            # Runs that fail say so in their outcome, so an error here is the engine's.
            try:
                identity, outcome = next(outcomes)
            except StopIteration:
                return None
            except Exception as problem:
                return f"{type(problem).__name__}: {problem}".splitlines()[0]
            done(identity, outcome)


@contextmanager
def quiet_when_stopped() -> Iterator[None]:
    """joblib's thread that hands out work finds it gone when it is stopped, and would say so by a traceback."""
    before = threading.excepthook

    def tell(problem: threading.ExceptHookArgs) -> None:
        ours = problem.thread is not None and problem.thread.name == "ExecutorManagerThread"
        if not (ours and issubclass(problem.exc_type, KeyError)):
            before(problem)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _do(
    identity: str, specification: Json, threads: int, device: str | None, asked_by: int | None
) -> tuple[str, Json]:
    if asked_by not in (None, os.getpid()):
        _end_with(asked_by)
    return identity, do(identity, specification, threads, device)


@functools.cache
def _end_with(asked_by: int) -> None:
    """End this process once the one that asked is gone: joblib's would first do the runs that wait in its queue."""

    def watch() -> None:
        while os.getppid() == asked_by:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def require_engine(engine: str, address: str | None) -> None:
    """Before anything is written.

    Raises:
        ConfigError: no such engine, or an address for the one that has none.
    """
    if engine not in ENGINES:
        raise ConfigError(f"'{engine}'", where="--engine", allowed=", ".join(ENGINES))
    if engine == "joblib" and address is not None:
        raise ConfigError("has no address", where="--engine joblib", remedy="leave --address out")


@contextmanager
def _engine(engine: str, address: str | None, processes: int, threads: int) -> Iterator[None]:
    from joblib import parallel_config

    _require_answer(engine, address)
    with ExitStack() as stack:
        if engine == "joblib":
            stack.enter_context(parallel_config("loky", n_jobs=processes, inner_max_num_threads=threads))
        elif engine == "dask":
            stack.enter_context(_dask(address, processes))
            stack.enter_context(parallel_config("dask", n_jobs=-1))
        else:
            slots = stack.enter_context(_ray(address, processes))
            stack.enter_context(parallel_config("ray", n_jobs=slots))
        yield


def _require_answer(engine: str, address: str | None) -> None:
    """Find out in seconds whether anybody answers there; Ray itself tries for minutes."""
    place = re.fullmatch(r"(?:\w+://)?([^/]+):(\d+)", address or "")
    if place is None:
        return
    try:
        socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as problem:
        raise _unreachable(engine, address, problem) from problem


@contextmanager
def _dask(address: str | None, processes: int) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as problem:
        raise _not_installed("dask") from problem
    from joblib import register_parallel_backend
    from joblib._dask import DaskDistributedBackend  # joblib has no public name for it

    class PatientDaskBackend(DaskDistributedBackend):  # type: ignore[misc]
        """Leaves runs to the scheduler, however few workers have come so far."""

        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(LEAST_SLOTS, super().effective_n_jobs(n_jobs))

    register_parallel_backend("dask", PatientDaskBackend)
    with ExitStack() as stack:
        try:
            if address is None:
                cluster = LocalCluster(
                    n_workers=processes, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
                )
                stack.enter_context(cluster)
            client = Client(cluster if address is None else address, timeout=30)
        except (OSError, ValueError) as problem:
            raise _unreachable("dask", address, problem) from problem
        yield stack.enter_context(client)


@contextmanager
def _ray(address: str | None, processes: int) -> Iterator[int]:
    """Connect, and tell how many runs go at once; usage is not reported to anybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from joblib import register_parallel_backend
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError as problem:
        raise _not_installed("ray") from problem

    class StreamingRayBackend(RayBackend):  # type: ignore[misc]
        """Ray's backend tells each result as it comes, but does not say so."""

        supports_return_generator = True

    register_parallel_backend("ray", StreamingRayBackend)
    try:
        here: dict[str, Any] = {"num_cpus": processes, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(address=address, log_to_driver=False, **({} if address else here))
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise _unreachable("ray", address, problem) from problem
    try:
        yield processes if address is None else _slots(lambda: int(ray.cluster_resources().get("CPU", 0)), address)
    finally:
        ray.shutdown()


def _slots(count: Callable[[], int], address: str) -> int:
    """How many runs a cluster takes at once, when its nodes have come."""
    deadline = time.monotonic() + SECONDS_FOR_NODES
    while (slots := count()) < LEAST_SLOTS:
        if time.monotonic() > deadline:
            raise EngineError(
                f"has {slots} CPU",
                where=f"--engine ray --address {address}",
                allowed=f"at least {LEAST_SLOTS}",
                remedy="start more nodes, or give the command on that machine without --engine",
            )
        time.sleep(0.2)
    return slots


def _not_installed(engine: str) -> ConfigError:
    return ConfigError("is not installed", where=f"--engine {engine}", remedy=f"pip install 'medistill[{engine}]'")


def _unreachable(engine: str, address: str | None, problem: Exception) -> EngineError:
    told = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    return EngineError(f"cannot be reached ({told})", where=f"--engine {engine} --address {address}")
