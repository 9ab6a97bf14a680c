"""One run: distil, evaluate, score; in a process of its own, wherever an engine puts it.

The process reads the run on standard input and ends when that is closed, so nothing goes on
where the one who asked is gone. What it measured is also kept in its folder in the user's
cache, so a result that was lost on the way is found and not made again.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from medistill import __version__
from medistill.aliases import Json
from medistill.errors import MedistillError, OutputError
from medistill.files import (
    CACHE_VARIABLE,
    canonical_json,
    pretty_json,
    read_json,
    refusing_output,
    user_cache,
    write_atomically,
)
from medistill.runtime import DEVICE_VARIABLE, child_environment


def folder_of(identity: str) -> Path:
    """Where a run's result lies."""
    return user_cache() / "study" / identity[:32]


def do(identity: str, specification: Json, threads: int, device: str | None = None) -> Json:
    """Do a run in a process of its own with so many threads, on a device if one is named.

    Returns:
        ``status`` ("done" or "failed"), ``result`` or ``error``, ``seconds``, ``finished``, ``machine``,
        ``medistill``, ``starts`` (above one where it was ended before). Nothing is raised: a run that
        fails is told like one that does not.
    """
    started = time.monotonic()
    try:
        return _kept(folder_of(identity)) or _asked_of_a_process(identity, specification, threads, device)
    except Exception as problem:  # no process could be had, or it said what nobody expects; the other runs go on
        return _outcome("failed", error=_told(problem), seconds=round(time.monotonic() - started, 3))


def _kept(folder: Path) -> Json | None:
    """What a run measured before; None too where that cannot be read."""
    with suppress(OSError, ValueError):
        return dict(read_json(folder / "result.json"))
    return None


def _asked_of_a_process(identity: str, specification: Json, threads: int, device: str | None) -> Json:
    environment = child_environment(threads) | ({} if device is None else {DEVICE_VARIABLE: device})
    command = [sys.executable, "-m", "medistill.study.work", identity]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it ended before it had read; what it said tells why
                process.stdin.write(json.dumps(specification) + "\n")
                process.stdin.flush()
            said = process.stdout.read()  # ends when the process does
            with suppress(subprocess.TimeoutExpired):  # it has said what it had to say, and is ended below
                process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        complaint = errors.read().strip()[-2000:]
    lines = said.splitlines()
    if lines:
        return dict(json.loads(lines[-1]))
    return _outcome("failed", error=_ended(process.returncode, complaint), seconds=time.monotonic() - started)


def _ended(status: int, complaint: str) -> str:
    """Why a process said nothing; tables show the last line."""
    if status < 0:
        return f"the process was ended by signal {-status}, perhaps for want of memory"
    ended = f"the process ended with status {status}"
    return f"{complaint}\n{ended}: {complaint.splitlines()[-1]}" if complaint else ended


def _outcome(status: str, **values: object) -> Json:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "status": status, "error": None, "result": None, "machine": machine, "finished": finished,
        "medistill": __version__, "starts": 1, **values,
    }  # fmt: skip


def perform(specification: Json) -> Json:
    """What a run measures.

    Returns:
        The kept parts of the evaluation, ``bytes``, ``cost``, ``representativeness``, ``validation`` and
        ``features``; of kind "features" the last alone.

    Raises:
        MedistillError: the data changed since the study was planned, or cannot be used with these settings.
    """
    from medistill.study.measure import distilled, features_of, pooled, transfer

    kinds = {"distilled": distilled, "transfer": transfer, "pooled": pooled, "features": features_of}
    measure = kinds[specification["kind"]]
    return measure(specification)


def _work(identity: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides
    specification = json.loads(sys.stdin.readline())

    def end_when_nobody_listens() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_when_nobody_listens, daemon=True).start()
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a method prints is no answer
    started = time.monotonic()
    try:
        outcome = _once(identity, specification)
    except Exception as problem:
        outcome = _outcome("failed", error=_told(problem), seconds=round(time.monotonic() - started, 3))
    answer.write(json.dumps(outcome) + "\n")
    answer.flush()


def _once(identity: str, specification: Json) -> Json:
    """Do the run if nobody did it, and keep what it gave.

    Raises:
        OutputError: the cache cannot be written.
    """
    from filelock import FileLock

    folder = folder_of(identity)
    lock = FileLock(folder / "lock")
    with refusing_output(folder, CACHE_VARIABLE):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # a process of a killed study may not have ended yet
    try:
        if (kept := _kept(folder)) is not None:  # done while this process waited
            return kept
        started = time.monotonic()
        starts = folder / "starts"
        started_before = len(starts.read_text()) if starts.exists() else 0
        write_atomically(starts, "x" * (started_before + 1), CACHE_VARIABLE)
        try:
            outcome = _outcome("done", result=perform(specification))
            canonical_json(outcome)  # so that what cannot be written is found here
        except Exception as problem:
            outcome = _outcome("failed", error=_told(problem))
        outcome["starts"] = started_before + 1
        outcome["seconds"] = round(time.monotonic() - started, 3)
        if outcome["status"] == "done":
            with suppress(OutputError):  # a full disk must not lose what was measured; it is told to whoever asked
                write_atomically(folder / "result.json", pretty_json(outcome))
        return outcome
    finally:
        lock.release()


def _told(problem: Exception) -> str:
    """One line where the user can mend it, else where in our code it happened."""
    return str(problem) if isinstance(problem, MedistillError) else "".join(traceback.format_exception(problem))


if __name__ == "__main__":
    _work(sys.argv[1])
