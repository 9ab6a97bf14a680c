"""A distilled set as it is shared: images, labels and the manifest; writing and verified reading.

Layout, format version 1::

    README.md                     the card, for whoever receives it
    manifest.json                 what it is, and the SHA-256 of every other file
    distilled.npz                 train_images, train_labels in MedMNIST layout, perhaps train_soft_labels
    images/<class>/<number>.png   the same images, lossless
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill import __version__
from medistill.data.preprocess import Part, Preprocessing
from medistill.errors import PackageError
from medistill.files import canonical_json, pretty_json, sha256_text
from medistill.package.card import card
from medistill.package.container import Files, read_files, write_files
from medistill.package.manifest import FORMAT, FORMAT_VERSION, parse_manifest
from medistill.types import Json, Labels

Kinds = dict[str, tuple[tuple[int, ...], Any]]
"""Shape and type that an array must have, by name."""


@dataclass(frozen=True)
class Package:
    """A distilled set.

    Args:
        pixels: (n, c, h, w) ``uint8`` as stored, sorted by class; h and w may be smaller than networks see.
        labels: (n,) the class that each stands for.
        manifest: as documented in docs/explanation/package-format.md.
        soft_labels: (n, classes) class probabilities to train on, values of half precision, or None.
        size_bytes: bytes of all files; 0 before it was written.
    """

    pixels: npt.NDArray[np.uint8]
    labels: Labels
    manifest: Json
    soft_labels: npt.NDArray[np.float32] | None = None
    size_bytes: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["class_names"])

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_json(self.manifest["preprocessing"])

    @property
    def part(self) -> Part:
        """The images as a training set, at the size that networks see."""
        return Part(decoded(self.pixels, self.preprocessing.size), self.labels, self.soft_labels)

    @property
    def identity(self) -> str:
        """SHA-256 that identifies the package's content."""
        return str(self.manifest["package_id"])

    def with_evaluation(self, evaluation: Json) -> Package:
        """The same images with these evaluation results in the manifest and on the card."""
        return replace(self, manifest={**self.manifest, "evaluation": evaluation})


def decoded(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Stored pixels (n, c, h, w) enlarged to ``size``, rounded."""
    if pixels.shape[2:] == size:
        return pixels
    import torch

    from medistill.nets.pixels import decode

    return decode(torch.from_numpy(pixels).float(), size).round().to(torch.uint8).numpy()


def encoded(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Pixels (n, c, h, w) made smaller, to the stored ``size``, rounded."""
    if pixels.shape[2:] == size:
        return pixels
    import torch

    from medistill.nets.pixels import encode

    return encode(torch.from_numpy(pixels).float(), size).round().to(torch.uint8).numpy()


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """A folder name per class: number, then the name's plain characters; sorted like the numbers."""
    digits = len(str(len(class_names) - 1))
    plain = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] for name in class_names]
    return [f"{i:0{digits}d}_{name}" if name else f"{i:0{digits}d}" for i, name in enumerate(plain)]


def package_files(package: Package) -> Files:
    """Every file of the package; equal packages give equal bytes."""
    files: Files = {"distilled.npz": _npz(package)}
    folders = folder_names(package.class_names)
    digits = len(str(max(0, len(package.labels) - 1)))
    for index, (pixels, label) in enumerate(zip(package.pixels, package.labels, strict=True)):
        files[f"images/{folders[label]}/{index:0{digits}d}.png"] = _png(pixels)
    base = {k: v for k, v in package.manifest.items() if k not in ("files", "package_id")}
    base |= {"format": FORMAT, "format_version": FORMAT_VERSION, "created_by": {"medistill": __version__}}
    base["images"] = {
        "count": len(package.labels),
        "per_class": np.bincount(package.labels, minlength=len(folders)).tolist(),
        "folders": folders,
        "stored_size": list(package.pixels.shape[2:]),
        "labels": "hard" if package.soft_labels is None else "soft",
    }
    files["README.md"] = card(base).encode()
    base["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    base["package_id"] = sha256_text(canonical_json(base))
    files["manifest.json"] = pretty_json(base).encode()
    return files


def write_package(out: Path, package: Package) -> Package:
    """Write a package and read it back; what is returned is what a recipient will see.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    write_files(out, package_files(package))
    return read_package(out)


def read_package(path: str | Path) -> Package:
    """Read a package and verify everything about it.

    Raises:
        PackageError: anything altered, missing, surplus, inconsistent or unsafe.
    """
    path = Path(path).expanduser()
    files = read_files(path)
    manifest = _manifest(path, files)
    _require_hashes(path, files, manifest)
    try:
        pixels, labels, soft_labels = _images(files, manifest)
    except Exception as problem:  # decoders raise many kinds on files made to break them
        raise PackageError(f"its images do not fit its manifest ({problem})", where=path) from problem
    if "README.md" not in files:
        raise PackageError("has no README.md, so it is no package", where=path)
    return Package(pixels, labels, manifest, soft_labels, sum(len(content) for content in files.values()))


def _manifest(path: Path, files: Files) -> Json:
    if "manifest.json" not in files:
        raise PackageError("has no manifest.json, so it is no package", where=path)
    return parse_manifest(files["manifest.json"], f"{path}: manifest.json")


def _require_hashes(path: Path, files: Files, manifest: Json) -> None:
    listed: dict[str, str] = manifest["files"]
    present = set(files) - {"manifest.json"}
    problems = [f"'{name}' is missing" for name in sorted(set(listed) - present)]
    surplus = sorted(present - set(listed))
    for name in sorted(present & set(listed)):
        if hashlib.sha256(files[name]).hexdigest() != listed[name]:
            problems.append(f"'{name}' was altered")
    if problems:
        more = f" ({len(problems) + len(surplus) - 1} more)" if [*problems, *surplus][1:] else ""
        raise PackageError(problems[0] + more, where=path, remedy="ask the sender for the package again")
    if surplus:
        more = f" ({len(surplus) - 1} more)" if surplus[1:] else ""
        raise PackageError(f"'{surplus[0]}' is surplus{more}", where=path, remedy="remove what is no part of it")


def _images(files: Files, manifest: Json) -> tuple[npt.NDArray[np.uint8], Labels, npt.NDArray[np.float32] | None]:
    statistics = Preprocessing.from_json(manifest["preprocessing"])
    height, width = manifest["images"]["stored_size"]
    classes, count = len(manifest["class_names"]), int(manifest["images"]["count"])
    shape = (count, height, width) if statistics.channels == 1 else (count, height, width, 3)
    kinds: Kinds = {"train_images": (shape, np.uint8), "train_labels": ((count, 1), _label_kind(classes))}
    soft = manifest["images"]["labels"] == "soft"
    if soft:
        kinds["train_soft_labels"] = ((count, classes), np.float16)
    arrays = _read_npz(files["distilled.npz"], kinds)
    pixels = arrays["train_images"].reshape(count, height, width, statistics.channels).transpose(0, 3, 1, 2)
    labels = arrays["train_labels"][:, 0].astype(np.int64)
    if labels.max() >= classes or (np.diff(labels) < 0).any():
        raise ValueError("labels that are not the classes in order")
    if np.bincount(labels, minlength=classes).tolist() != manifest["images"]["per_class"]:
        raise ValueError("labels")
    names = [name for name in files if name.startswith("images/")]
    if len(names) != count:
        raise ValueError(f"{len(names)} PNG files for {count} images")
    for index, name in enumerate(sorted(names, key=lambda n: int(Path(n).stem))):
        if Path(name).parts[1] != manifest["images"]["folders"][labels[index]]:
            raise ValueError(f"{name} is in the wrong class")
        shown = _read_png(files[name], (height, width), statistics.channels)
        if not np.array_equal(shown, pixels[index].transpose(1, 2, 0)):
            raise ValueError(f"{name} differs from distilled.npz")
    return np.ascontiguousarray(pixels), labels, _probabilities(arrays["train_soft_labels"]) if soft else None


def _probabilities(stored: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    probabilities = stored.astype(np.float32)
    if not (probabilities >= 0).all() or not (np.abs(probabilities.sum(1) - 1) < 0.01).all():
        raise ValueError("soft labels that are no probabilities")
    return probabilities


def _npz(package: Package) -> bytes:
    images = package.pixels.transpose(0, 2, 3, 1)
    images = images[..., 0] if images.shape[3] == 1 else images
    stream = io.BytesIO()
    labels = package.labels.astype(_label_kind(len(package.class_names)))[:, None]
    arrays: dict[str, npt.NDArray[Any]] = {"train_images": np.ascontiguousarray(images), "train_labels": labels}
    if package.soft_labels is not None:
        arrays["train_soft_labels"] = package.soft_labels.astype(np.float16)
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _label_kind(classes: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if classes <= 256 else np.uint16


def _read_npz(content: bytes, kinds: Kinds) -> dict[str, npt.NDArray[Any]]:
    """Exactly these arrays, of this shape and type; their headers are read before anything is unpacked."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in kinds):
            raise ValueError("distilled.npz holds other arrays")
        arrays = {}
        for name, (shape, kind) in kinds.items():
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            if archive.getinfo(f"{name}.npy").file_size > size + 1024:
                raise ValueError(f"{name} is larger than its images")
            raw = io.BytesIO(archive.read(f"{name}.npy"))
            if np.lib.format.read_magic(raw) != (1, 0):
                raise ValueError(f"{name} has an unknown header")
            found, fortran, dtype = np.lib.format.read_array_header_1_0(raw)
            if found != shape or fortran or dtype != kind:
                raise ValueError(f"{name} is {dtype} {found}, expected {np.dtype(kind)} {shape}")
            arrays[name] = np.frombuffer(raw.read(), dtype=kind).reshape(shape).copy()
    return arrays


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _read_png(content: bytes, size: tuple[int, int], channels: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    # Width, height, depth and colour type stand at a fixed place; another picture is not decoded.
    kind = struct.pack(">II", size[1], size[0]) + bytes([8, 0 if channels == 1 else 2])
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[16:26] != kind:
        raise ValueError("a PNG of the wrong size or kind")
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
