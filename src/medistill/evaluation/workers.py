"""Jobs side by side: one process and one thread for each network, as many as there are cores.

Small networks use several threads badly; side by side, each with one thread, the same cores
train more of them. One thread also makes the result the same on every number of cores.

Workers are processes of their own (``python -m medistill.evaluation.workers FOLDER``) that
read images from files and talk in lines, so that no script of a user is run
again and nothing is pickled.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medistill.data.arrays import read_array, scratch_folder, write_array
from medistill.data.preprocess import TensorSplit
from medistill.errors import MedistillError
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.jobs import Job, Splits, do_job, is_kept, run_prefix
from medistill.evaluation.portions import Portion, portions
from medistill.evaluation.stacked import do_stacked
from medistill.parallel import one_thread
from medistill.runtime import child_environment, count_workers, device, own_peak_mb, prepare_torch, usable_cores

SMALL = 1e6
"""Steps times (images + :data:`OVERHEAD`) times filters, of images of 28×28 pixels, below which starting processes
costs more than it gains.
"""

OVERHEAD = 8
"""Images that cost as much as what a step costs beside its images."""

REPORT_EVERY = 512
"""Work after which a worker says how far it is."""

OnDone = Callable[[Job, TrainedRun], None]


class WorkerError(MedistillError):
    """A training process ended before its work was done."""


def run_all(
    jobs: Sequence[Job], splits: Splits, advance: Callable[[int], None], done: OnDone, max_workers: int | None = None
) -> None:
    """Do all jobs, the longest first and some in two portions, or on a GPU those together that are trained alike.

    Args:
        jobs: what to do.
        splits: images by digest.
        advance: told how much more of :meth:`Job.work` was done.
        done: given each result as it comes, in this thread or another, never two at once.
        max_workers: processes at once, at most; None: one for each core. A GPU trains them together anyway.

    Raises:
        WorkerError: a process was ended, for want of memory for instance.
    """
    if (where := device()).type != "cpu":
        do_stacked(jobs, splits, advance, done, where)
        return
    known = [job for job in jobs if is_kept(job)]
    with one_thread():
        for job in known:
            done(job, do_job(job, splits, advance))
    jobs = [job for job in jobs if job not in known]
    efforts = [_effort(job, splits) for job in jobs]
    count = min(len(jobs), max_workers or usable_cores())
    if count < 2 or sum(efforts) < SMALL:
        with one_thread():
            for job in sorted(jobs, key=lambda job: -job.work(splits)):
                done(job, do_job(job, splits, advance))
        return
    digests = {d for job in jobs for d in (job.train, job.test, job.val) if d is not None}
    with scratch_folder(sum(splits[digest].pixels.nbytes for digest in digests)) as folder:
        for digest in digests:
            data = splits[digest]
            soft = {} if data.soft_labels is None else {"soft_labels": data.soft_labels}
            (folder / digest).write_bytes(save({"targets": np.ascontiguousarray(data.targets), **soft}))
            write_array(folder / f"{digest}.npy", data.pixels)
        todo = [_Task.of(portion, jobs[portion.index], splits) for portion in portions(efforts, count)]
        _Team(folder, todo, advance, done).run(count)


def _effort(job: Job, splits: Splits) -> float:
    pixels = math.prod(splits[job.train].shape)
    return (job.work(splits) + OVERHEAD * job.steps(splits)) * job.recipe.width * pixels / 28**2


@dataclass(frozen=True)
class _Task:
    """A job, or its steps up to one, or from there on.

    Args:
        job: what to do.
        until: the last step of its first portion; none for a whole job.
        first: whether it is the first portion.
    """

    job: Job
    until: int | None = None
    first: bool = False

    @classmethod
    def of(cls, portion: Portion, job: Job, splits: Splits) -> _Task:
        share = portion.start or portion.end
        return cls(job) if share == 1 else cls(job, round(share * job.steps(splits)), portion.start == 0)


class _Team:
    """Hands tasks to workers and collects their messages; a thread listens to each."""

    def __init__(self, folder: Path, tasks: Sequence[_Task], advance: Callable[[int], None], done: OnDone) -> None:
        self.folder, self.advance, self.done = folder, advance, done
        self.waiting, self.begun = list(tasks), set[Job]()
        self.news = threading.Condition()
        self.failure: BaseException | None = None
        self.processes: list[subprocess.Popen[str]] = []
        self.peaks: dict[int, float] = {}

    def run(self, count: int) -> None:
        command = [sys.executable, "-m", "medistill.evaluation.workers", str(self.folder)]
        listeners = []
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment(1)
                )
                self.processes.append(process)
                listeners.append(threading.Thread(target=self._listen, args=(process,), daemon=True))
                listeners[-1].start()
            while any(thread.is_alive() for thread in listeners) and self.failure is None:
                for thread in listeners:
                    thread.join(0.1)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            count_workers(list(self.peaks.values()))
        if self.failure is not None:
            raise self.failure

    def _listen(self, process: subprocess.Popen[str]) -> None:
        try:
            while (task := self._next()) is not None:
                self._one(process, task)
        except BaseException as problem:  # carried to the thread that waits
            with self.news:
                self.failure = self.failure or problem
                self.news.notify_all()

    def _next(self) -> _Task | None:
        """The first that is ready; waits for another's first portion where all that is left goes on with one."""
        with self.news:
            while self.waiting and self.failure is None:
                for task in self.waiting:
                    if task.until is None or task.first or task.job in self.begun:
                        self.waiting.remove(task)
                        return task
                self.news.wait()
        return None

    def _one(self, process: subprocess.Popen[str], task: _Task) -> None:
        assert process.stdin is not None and process.stdout is not None
        job = task.job
        try:
            asked = {"job": job.as_json(), "until": task.until, "first": task.first}
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the loop below finds the end of its output and says so
        for line in process.stdout:
            message = json.loads(line)
            with self.news:
                if "work" in message:
                    self.advance(message["work"])
                    continue
                self.peaks[process.pid] = message["peak_mb"]
                if task.first:
                    self.begun.add(job)
                    self.news.notify_all()
                else:
                    arrays = load((self.folder / message["result"]).read_bytes())
                    self.done(job, TrainedRun(arrays["probabilities"], arrays["curve"]))
                return
        raise WorkerError(
            f"a process that trained a network ended with status {process.wait()}",
            remedy="if memory was short, close other programs or set OMP_NUM_THREADS=1, and give the command again: "
            "finished networks are kept",
        )


def _work(folder: Path) -> None:
    """A worker's life: a task a line on standard input, answers on standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides
    prepare_torch()
    import torch

    torch.set_num_threads(1)
    splits: Splits = {}
    for line in sys.stdin:
        asked = json.loads(line)
        job, until = Job.from_json(asked["job"]), asked["until"]
        begun = folder / f"{job.identity}.begun"
        for digest in (job.train, job.test, job.val):
            if digest is not None and digest not in splits:
                arrays = load((folder / digest).read_bytes())
                pixels = read_array(folder / f"{digest}.npy")
                splits[digest] = TensorSplit(pixels, arrays["targets"], arrays.get("soft_labels"))
        pending = 0

        def advance(work: int) -> None:
            nonlocal pending
            pending += work
            if pending >= REPORT_EVERY:
                _say({"work": pending})
                pending = 0

        result = folder / f"{job.identity}.run"
        if asked["first"]:
            begun.write_bytes(save_tensors(run_prefix(job, splits, advance, until)))
        else:
            run = do_job(job, splits, advance, begun=load_tensors(begun.read_bytes()) if until else None)
            result.write_bytes(save({"probabilities": run.probabilities, "curve": run.curve}))
        _say({"work": pending})
        _say({"result": result.name, "peak_mb": own_peak_mb()})


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()  # where nobody listens any more this ends the worker


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
