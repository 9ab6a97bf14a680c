"""Names of patients and scanners as salted hashes: equal names are equal, and nobody reads them back."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from contextlib import suppress

from medistill.files import user_cache

LENGTH = 16
"""Bytes of a salt, and of a hash."""


def pseudonym(name: str) -> str:
    """A name's hash, hexadecimal, salted with a secret of the user's cache; nothing for nothing.

    Without the salt nobody can find out by trying names whose hash it is; whoever has the cache has the salt.
    """
    if not name:
        return ""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=LENGTH, key=_salt()).hexdigest()


@functools.cache
def _salt() -> bytes:
    """The user's, made on first use; one of this process alone where the cache cannot be written."""
    file, flags = user_cache() / "salt", os.O_WRONLY | os.O_CREAT | os.O_EXCL
    made = secrets.token_bytes(LENGTH)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), os.fdopen(os.open(file, flags, 0o600), "wb") as new:
            new.write(made)
        kept = file.read_bytes()
        return kept if len(kept) == LENGTH else made
    return made
