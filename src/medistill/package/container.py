"""A package's files by name, from a folder or a zip, without trusting either."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path, PurePosixPath

from medistill.errors import PackageError
from medistill.files import flush, new_folder, refusing_output, write_atomically

LARGEST = 2 * 1024**3
"""Bytes of a whole package that are opened at most."""

Files = dict[str, bytes]
"""Content by POSIX path below the package."""

ZIP_DATE = (1980, 1, 1, 0, 0, 0)


MARK = b'"format": "medistill-package"'
"""Stands in every manifest, and uncompressed in every zip."""


def is_package(path: Path) -> bool:
    """Whether a package lies there, whole or damaged; nothing else may be replaced by one."""
    manifest = path / "manifest.json" if path.is_dir() else path
    try:
        return manifest.is_file() and MARK in manifest.read_bytes()
    except OSError:
        return False


def read_files(path: Path) -> Files:
    """Read every file of a package.

    Raises:
        PackageError: no package there, links, odd files, paths that leave the folder, or too large.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_zip(path)
    raise PackageError("no such package", where=path, allowed="a package folder or its .zip")


def _read_folder(path: Path) -> Files:
    files: Files = {}
    total = 0
    for entry in sorted(path.rglob("*")):
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink():
            raise PackageError("is a link; packages hold plain files only", where=f"{path}: {name}")
        if entry.is_dir():
            if not any(entry.iterdir()):
                raise PackageError("is an empty folder that no package has", where=f"{path}: {name}")
            continue
        if not entry.is_file():
            raise PackageError("is not a plain file", where=f"{path}: {name}")
        total += entry.stat().st_size
        _require_size(path, total)
        try:
            files[name] = entry.read_bytes()
        except OSError as problem:
            raise PackageError(f"cannot be read ({problem.strerror})", where=f"{path}: {name}") from problem
    return files


def _read_zip(path: Path) -> Files:
    try:
        _require_size(path, path.stat().st_size)
        content = path.read_bytes()
        archive = zipfile.ZipFile(io.BytesIO(content))
    except PackageError:
        raise
    except Exception as problem:  # zipfile raises many kinds on a damaged directory
        raise PackageError("is not a readable zip", where=path, remedy="ask the sender for it again") from problem
    files: Files = {}
    total = 0
    for info in archive.infolist():
        _require_safe(path, info)
        if info.filename in files:
            raise PackageError("is in the zip twice", where=f"{path}: {info.filename}")
        total += info.file_size
        _require_size(path, total)
        try:
            files[info.filename] = archive.read(info)
        except Exception as problem:  # zipfile raises many kinds on a damaged entry
            raise PackageError("is damaged", where=f"{path}: {info.filename}") from problem
    # Anything beside the files (a flipped bit in the directory, hidden bytes) changes these bytes.
    if zip_bytes(files) != content:
        raise PackageError(
            "is not the zip that medistill wrote: it was damaged, altered or packed again",
            where=path,
            remedy="ask the sender for it again, or unpack it yourself and verify the folder",
        )
    return files


def _require_safe(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    parts = PurePosixPath(name).parts
    leaves = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name
    if leaves:
        raise PackageError("names a path outside the package; it was not opened", where=f"{path}: {name!r}")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise PackageError("is a link; packages hold plain files only", where=f"{path}: {name}")
    if info.is_dir() or info.compress_type != zipfile.ZIP_STORED:
        raise PackageError("is not stored as medistill stores files", where=f"{path}: {name}")


def _require_size(path: Path, total: int) -> None:
    if total > LARGEST:
        raise PackageError("is too large to open", where=path, allowed=f"{LARGEST} bytes")


def zip_bytes(files: Files) -> bytes:
    """The one zip of these files: sorted, stored, no dates; equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return stream.getvalue()


def is_zip(out: Path) -> bool:
    """Whether a package of that name is a zip."""
    return out.suffix.lower() == ".zip"


def write_files(out: Path, files: Files) -> None:
    """Write a package to a folder, or to a zip where ``out`` ends in ``.zip``; whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    if is_zip(out):
        write_atomically(out, zip_bytes(files))
        return
    with new_folder(out) as folder, refusing_output(out):
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            flush(target)
