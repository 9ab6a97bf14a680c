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
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from medistill import __version__
from medistill.errors import MedistillError
from medistill.files import canonical_json, pretty_json, read_json, user_cache, write_atomically
from medistill.runtime import child_environment
from medistill.types import Json


def folder_of(identity: str) -> Path:
    """Where a run's result lies."""
    return user_cache() / "study" / identity[:32]


def do(identity: str, specification: Json, threads: int) -> Json:
    """Do a run in a process of its own with so many threads.

    Returns:
        ``status`` ("done" or "failed"), ``result`` or ``error``, ``seconds``, ``finished``, ``machine``,
        ``medistill``, ``starts`` (above one where it was ended before). Nothing is raised: a run that
        fails is told like one that does not.
    """
    kept = folder_of(identity) / "result.json"
    if kept.exists():
        return dict(read_json(kept))
    environment = child_environment(threads)
    command = [sys.executable, "-m", "medistill.study.work", identity]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    started = time.monotonic()
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(specification) + "\n")
        process.stdin.flush()
        said = process.stdout.read()  # ends when the process does
    finally:
        process.kill()
        process.wait()
    lines = said.splitlines()
    if lines:
        return dict(json.loads(lines[-1]))
    ended = f"the process ended with status {process.returncode}, perhaps for want of memory"
    return _outcome("failed", error=ended, seconds=time.monotonic() - started)


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
        The kept parts of the evaluation, ``bytes``, ``cost`` and ``representativeness``.

    Raises:
        MedistillError: the data changed since the study was planned, or cannot be used with these settings.
    """
    from medistill.study.measure import distilled, pooled, transfer

    measure = {"distilled": distilled, "transfer": transfer, "pooled": pooled}[specification["kind"]]
    return measure(specification)


def _work(identity: str) -> None:
    from filelock import FileLock

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us decides
    specification = json.loads(sys.stdin.readline())

    def end_when_nobody_listens() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_when_nobody_listens, daemon=True).start()
    folder = folder_of(identity)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # A process of a killed study may not have ended yet.
    with FileLock(folder / "lock"):
        if (folder / "result.json").exists():  # done while this process waited
            sys.stdout.write("\n" + json.dumps(read_json(folder / "result.json")) + "\n")
            return
        starts = folder / "starts"
        started_before = len(starts.read_text()) if starts.exists() else 0
        starts.write_text("x" * (started_before + 1))
        try:
            outcome = _outcome("done", result=perform(specification))
            canonical_json(outcome)  # so that what cannot be written is found here
        except MedistillError as problem:
            outcome = _outcome("failed", error=str(problem))
        except Exception:
            outcome = _outcome("failed", error=traceback.format_exc())
        outcome["starts"] = started_before + 1
        outcome["seconds"] = round(time.monotonic() - started, 3)
        if outcome["status"] == "done":
            write_atomically(folder / "result.json", pretty_json(outcome))
    sys.stdout.write("\n" + json.dumps(outcome) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _work(sys.argv[1])
