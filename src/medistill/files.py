"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medistill.errors import OutputError


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
def refusing_output(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into one line that says what to do.

    Raises:
        OutputError: no permission, read-only file system, full disk, or a file where a folder is needed.
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise OutputError(
            f"cannot be written ({reason})", where=path, remedy="give --out a folder with room and permission"
        ) from problem


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write the whole file or nothing: a temporary neighbour, flushed, then renamed.

    Raises:
        OutputError: the file cannot be written; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    with refusing_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Build a folder beside ``target`` and put it in its place only when it is complete.

    An existing ``target`` is replaced. On any failure nothing is left behind and an
    existing ``target`` stays as it was.

    Raises:
        OutputError: the folder cannot be written.
    """
    with refusing_output(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            building.chmod(0o755)
            yield building
            if target.exists():
                aside = building.with_name(building.name + ".old")
                target.rename(aside)
                building.rename(target)
                shutil.rmtree(aside)
            else:
                building.rename(target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise


def read_json(path: Path) -> Any:
    """Parse a JSON file; ``ValueError`` if it is not one."""
    return json.loads(path.read_text(encoding="utf-8"))
