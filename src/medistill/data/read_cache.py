"""What was read from files is kept, so that the same files are not read again.

An entry is found by what the system says of the files, where they lie on the disk, how long they are, when they were
last written, and by how they are read; by no name or header. It holds pixels and, of patients and scanners, salted
hashes. Only the last few are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import Json
from medistill.files import canonical_json, user_cache

VERSION = 2
"""Of what readers make of files; a higher one forgets what was kept."""

DECODERS = ("pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pyjpegls", "pillow", "nibabel")

KEPT = 5
"""Entries; the oldest go first."""

LARGEST = 4 * 2**30
"""Bytes of an entry."""

Array = npt.NDArray[Any]


def identity(files: Mapping[str, Sequence[Path]], how: Json) -> str:
    """Of files by split, read that way.

    Raises:
        OSError: a file is gone.
    """
    digest = hashlib.sha256(canonical_json([VERSION, decoders(), how]).encode())
    for split, paths in files.items():
        digest.update(f"{split} {len(paths)}".encode())
        for path in paths:
            of = path.stat()
            digest.update(b"%d %d %d %d;" % (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns))
    return digest.hexdigest()


def decoders() -> dict[str, str]:
    """Versions of what decodes files, of what is installed."""
    found = {}
    for name in DECODERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def kept(key: str) -> tuple[dict[str, Array], Json] | None:
    """Arrays and facts of an entry; None where there is none, or a damaged one."""
    folder = _folder() / key
    try:
        facts = json.loads((folder / "facts.json").read_bytes())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in facts["arrays"]
        }
        os.utime(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    # What is small need not lie in a file.
    whole = {name: array if array.nbytes >= 2**29 else np.array(array) for name, array in arrays.items()}
    return whole, facts["facts"]


def keep(key: str, arrays: Mapping[str, Array], facts: Json) -> None:
    """Keep an entry whole or not at all; where there is no room, nothing is kept."""
    if sum(array.nbytes for array in arrays.values()) > LARGEST:
        return
    with suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(dir=_folder(), prefix="new-"))
        try:
            for name, array in arrays.items():
                np.save(made / f"{name}.npy", array, allow_pickle=False)
            text = json.dumps({"arrays": list(arrays), "facts": facts})
            (made / "facts.json").write_text(text, encoding="utf-8")
            shutil.rmtree(_folder() / key, ignore_errors=True)  # a damaged one
            made.rename(_folder() / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        entries = sorted(_folder().iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[KEPT:]:
            shutil.rmtree(entry, ignore_errors=True)


def _folder() -> Path:
    return user_cache() / "read"
