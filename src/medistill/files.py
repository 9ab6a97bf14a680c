"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medistill.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

CACHE_VARIABLE = "MEDISTILL_CACHE"


def user_cache() -> Path:
    """``MEDISTILL_CACHE``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("medistill"))


def read_cached(kind: str, identity: str) -> dict[str, Tensor] | None:
    """Tensors kept under that identity, or None; a damaged entry counts as none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load((user_cache() / kind / f"{identity}.safetensors").read_bytes())
    except (OSError, SafetensorError):
        return None
    return {name: tensor.clone() for name, tensor in tensors.items()}  # aligned like ones just computed


def has_cached(kind: str, identity: str) -> bool:
    """Whether something is kept under that identity, damaged or not."""
    return (user_cache() / kind / f"{identity}.safetensors").exists()


def write_cached(kind: str, identity: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors under an identity; where the cache cannot be written, nothing is kept."""
    from safetensors.torch import save

    with contextlib.suppress(OutputError):
        write_atomically(user_cache() / kind / f"{identity}.safetensors", save(tensors))


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the library itself writes the metadata in an order that changes from call to call."""
    from safetensors.torch import save

    data = save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + data[end:]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """SHA-256 of the UTF-8 text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pretty_json(value: Any) -> str:
    """JSON for people: sorted, indented, ends with a newline."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def refusing_output(path: Path, option: str = "--out") -> Iterator[None]:
    """Turn the operating system's refusal to write into one line that says what to do.

    Raises:
        OutputError: no permission, read-only file system, full disk, or a file where a folder is needed.
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise OutputError(
            f"cannot be written ({reason})", where=path, remedy=f"give {option} a place with room and permission"
        ) from problem


def require_room(folder: Path, needed: int, archive: Path) -> None:
    """Refuse to unpack an archive into a folder of the user's cache that has less room than the bytes needed.

    Raises:
        OutputError: it has less.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"has {free // 2**20} MB free; {archive.name} unpacks to {needed // 2**20} MB", where=folder,
            remedy=f"make room, or set {CACHE_VARIABLE} to a folder that has it",
        )  # fmt: skip


def require_writable(path: Path, option: str) -> None:
    """Find out before hours of work whether a file can be written there; nothing is left behind.

    Raises:
        OutputError: it cannot, or a folder is in its place.
    """
    with refusing_output(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
        made = next((p for p in [*reversed(path.parents)] if not p.exists()), None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        finally:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)


def require_apart(target: Path, option: str, *inputs: str | Path) -> None:
    """Refuse to write over what is read, or into it, or around it.

    Args:
        target: what would be written.
        option: that named it.
        inputs: data and packages; what is no path (a set's name) has no place.

    Raises:
        ConfigError: ``target`` is one of the inputs, lies in one, or one lies in it.
    """
    place = target.resolve()
    for given in inputs:
        try:
            source = Path(given).expanduser()
            exists = source.exists()
        except (OSError, RuntimeError):
            continue
        source = source.resolve()
        if exists and (place == source or place in source.parents or source in place.parents):
            raise ConfigError(
                f"would replace, lie in or hold {given}, which is read",
                where=target,
                remedy=f"give {option} a place apart from it",
            )


def require_ours(target: Path, option: str, mark: bytes) -> None:
    """Only what the same command wrote before is replaced.

    Args:
        target: what would be written.
        option: that named it.
        mark: stands near the beginning of everything that the command writes.

    Raises:
        ConfigError: another file is there.
    """
    with refusing_output(target, option):
        if not target.is_file():
            return
        with target.open("rb") as stream:
            ours = mark in stream.read(65536)
    if not ours:
        raise ConfigError("exists and was not made by this command", where=target, remedy=f"give another {option}")


def write_atomically(path: Path, content: bytes | str, option: str = "--out") -> None:
    """Write the whole file or nothing: a temporary neighbour, flushed, then renamed.

    Args:
        path: the file; where it is a link, the file it leads to.
        content: bytes, or text to be written as UTF-8.
        option: what to name in the error, because that is where the path came from.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    path = path.resolve()
    with refusing_output(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _neighbour(path)
        try:
            with written.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise


def _neighbour(path: Path) -> Path:
    """A name beside ``path`` that nobody has; what is made there gets the rights that the user's umask leaves."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def flush(path: Path) -> None:
    """Have the system put a file's content on the disk, so that a power cut after a rename loses nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Build a folder beside ``target`` and put it in its place only when it is complete.

    An existing folder is replaced; where ``target`` is a link, the folder it leads to. On any
    failure nothing is left behind and an existing ``target`` stays as it was.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = target.resolve()
    with refusing_output(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name")
        target.parent.mkdir(parents=True, exist_ok=True)
        building = _neighbour(target)
        building.mkdir()
        try:
            yield building
            if target.exists():
                aside = building.with_name(building.name + ".old")
                target.rename(aside)
                try:
                    building.rename(target)
                except BaseException:
                    aside.rename(target)
                    raise
                shutil.rmtree(aside, ignore_errors=True)
            else:
                building.rename(target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise


def read_json(path: Path) -> Any:
    """Parse a JSON file; ``ValueError`` if it is not one."""
    return json.loads(path.read_text(encoding="utf-8"))
