"""A run's folder: what it is, how far it came, what it cost; enough to go on after a kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from medistill.aliases import Json
from medistill.config import CHANGES_NOTHING, differing
from medistill.distil.method import State
from medistill.errors import ConfigError, DataError
from medistill.files import canonical_json, pretty_json, read_json, refusing_output, write_atomically
from medistill.nets.hardware import device_name
from medistill.package.container import is_package, is_zip
from medistill.runtime import device_peak, peak_memory_mb

CHECKPOINT_SECONDS = 10.0
LOCK = "lock"
RELEASES = "releases.json"
"""What was asked of private data, which nothing takes back: starting over keeps it."""

NAMES = "the name of a folder, or of a .zip file, to make"
ARCHIVES = {".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}


@dataclass
class Checkpoint:
    """A state, the seconds spent to reach it and the loss of every step so far."""

    state: State
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def determining(identity: Json) -> Json:
    """Of what identifies a run that which determines its result: a limit of memory changes rounding alone, and may be
    another one when a run goes on.
    """
    configuration = identity.get("configuration")
    if not isinstance(configuration, dict):  # a record that somebody changed
        return identity
    return {**identity, "configuration": {n: v for n, v in configuration.items() if n not in CHANGES_NOTHING}}


class RunFolder:
    """The folder beside a package in which its run is recorded.

    ``run.json`` identifies the run, ``checkpoint.safetensors`` is where it stands,
    ``log.json`` its losses, ``cost.json`` what it took. None of it belongs to the package.
    """

    def __init__(self, out: Path) -> None:
        given = out.expanduser()
        # A link keeps its own name; "." gets the folder's.
        self.out = given.resolve() if given.name in ("", "..") else given.parent.resolve() / given.name
        if not self.out.name:
            raise ConfigError(f"'{out}'", where="--out", allowed=NAMES)
        if self.out.suffix.lower() in ARCHIVES:
            raise ConfigError(f"'{out}'", where="--out", allowed=NAMES, remedy="no other archives are written")
        self.path = self.out.with_name(self.out.name + ".run")

    @contextlib.contextmanager
    def claimed(self, identity: Json, overwrite: bool) -> Iterator[None]:
        """Hold the folder for a run; nobody else works in it meanwhile.

        Only what we made is ever replaced: a package, a run's folder, an empty folder.

        Raises:
            ConfigError: it belongs to a run with another configuration, another command is working in it, or
                something else is there.
            OutputError: it cannot be written.
        """
        from filelock import FileLock, Timeout

        self._require_ours()
        with refusing_output(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, blocking=False)
            try:
                lock.acquire()
            except Timeout:
                remedy = "wait until it is done, or give another --out"
                raise ConfigError("another command is working on it", where=self.out, remedy=remedy) from None
        try:
            try:
                self._claim(identity, overwrite)
            except BaseException:
                if not (self.path / "run.json").exists():
                    (self.path / LOCK).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        self.path.rmdir()
                raise
            yield
        finally:
            lock.release()

    def _claim(self, identity: Json, overwrite: bool) -> None:
        if overwrite:
            with refusing_output(self.path):
                for file in self.path.iterdir():
                    if file.is_dir() and not file.is_symlink():
                        shutil.rmtree(file)
                    elif file.name not in (LOCK, RELEASES):
                        file.unlink()
        earlier = self._read("run.json")
        if earlier is not None and determining(earlier) != determining(identity):
            names = differing(determining(earlier), determining(identity))
            raise ConfigError(
                f"belongs to a run with another configuration: {', '.join(names)}",
                where=self.out,
                remedy="give another --out, or --overwrite to start over",
            )
        if earlier is None:
            if self.out.exists() and not overwrite and not _is_empty(self.out):
                raise ConfigError(
                    "exists and was not made by this command",
                    where=self.out,
                    remedy="give another --out, or --overwrite to replace it",
                )
            write_atomically(self.path / "run.json", pretty_json(identity))

    def _require_ours(self) -> None:
        remedy = "give another --out; nothing was touched"
        if is_zip(self.out) and self.out.is_dir():
            raise ConfigError("is a folder", where=self.out, remedy=remedy)
        if os.path.lexists(self.out) and not _is_empty(self.out) and not is_package(self.out):
            raise ConfigError("exists and is no package", where=self.out, remedy=remedy)
        if os.path.lexists(self.path) and not _is_empty(self.path) and self._read("run.json") is None:
            raise ConfigError("exists and is not the record of a run", where=self.path, remedy=remedy)

    def _read(self, name: str) -> Json | None:
        try:
            value = read_json(self.path / name)
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def releases(self) -> list[Json]:
        """Every release of private data that was recorded here, the oldest first."""
        recorded = (self._read(RELEASES) or {}).get("releases")
        return [entry for entry in recorded if isinstance(entry, dict)] if isinstance(recorded, list) else []

    def record_release(self, entry: Json) -> None:
        """Record a release, where it is not recorded yet."""
        earlier = self.releases()
        if entry not in earlier:
            write_atomically(self.path / RELEASES, pretty_json({"releases": [*earlier, entry]}))

    def read_log(self) -> list[float]:
        """Loss of every step so far, as last saved."""
        log = (self._read("log.json") or {}).get("loss")
        return [float(loss) for loss in log] if isinstance(log, list) else []

    def read_cost(self) -> Json | None:
        """Seconds, peak memory and device of the finished run."""
        cost = self._read("cost.json")
        return cost if cost and {"seconds", "peak_memory_mb", "device"} <= set(cost) else None

    def load(self) -> Checkpoint | None:
        """Where the run stands; None if it has not come so far."""
        path = self.path / "checkpoint.safetensors"
        try:
            tensors = load(path.read_bytes())
            prefix = "buffers."
            buffers = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            logits = tensors.get("label_logits")
            state = State(tensors["images"], tensors["targets"], buffers, int(tensors["step"]), logits)
            return Checkpoint(state, float(tensors["seconds"]), tensors["losses"].tolist())
        except FileNotFoundError:
            return None
        except (OSError, KeyError, SafetensorError) as problem:
            raise DataError(
                f"cannot be read ({problem})", where=path, remedy="start over with --overwrite"
            ) from problem

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one file in one move; a kill at any moment leaves the old one or the new one."""
        state = checkpoint.state
        tensors = {
            "images": state.images,
            "targets": state.targets,
            "step": torch.tensor(state.step),
            "seconds": torch.tensor(checkpoint.seconds, dtype=torch.float64),
            "losses": torch.tensor(checkpoint.losses, dtype=torch.float64),
        }
        if state.label_logits is not None:
            tensors["label_logits"] = state.label_logits
        tensors |= {f"buffers.{name}": tensor for name, tensor in state.buffers.items()}
        write_atomically(self.path / "checkpoint.safetensors", save(tensors))

    def finish(self, checkpoint: Checkpoint) -> None:
        """Record the cost and drop the checkpoint, which holds traces of the data."""
        cost = {
            "seconds": round(checkpoint.seconds, 1),
            "peak_memory_mb": peak_memory_mb(),
            "device": device_name(),
            **device_peak(),
        }
        write_atomically(self.path / "log.json", canonical_json({"loss": checkpoint.losses}))
        # The cost comes last of the two, because a run that has one counts as finished.
        write_atomically(self.path / "cost.json", pretty_json(cost))
        self.drop_checkpoint()

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a finished run, also where a kill had left it."""
        (self.path / "checkpoint.safetensors").unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(file.name == LOCK for file in path.iterdir())


class Saver:
    """After some steps: log their losses, and save every :data:`CHECKPOINT_SECONDS`."""

    def __init__(self, folder: RunFolder, checkpoint: Checkpoint) -> None:
        self.folder, self.checkpoint, self.before = folder, checkpoint, checkpoint.seconds
        self.started = self.saved = time.monotonic()

    def __call__(self, state: State, losses: list[float]) -> None:
        now = time.monotonic()
        self.checkpoint.losses += losses
        self.checkpoint.seconds = self.before + now - self.started
        if now - self.saved >= CHECKPOINT_SECONDS:
            self.folder.save(self.checkpoint)
            self.saved = now
