"""A distilled set as it is shared: images, labels and the manifest; writing and verified reading.

Layout, format version 2::

    README.md                       the card, for whoever receives it
    manifest.json                   what it is, and the SHA-256 of every other file
    distilled.npz                   train_images, train_labels in MedMNIST layout, perhaps train_soft_labels
    images/<stratum>/<number>.png   the same images, lossless; of volumes three middle slices, to look at
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medistill.aliases import Pixels, SoftLabels, Targets
from medistill.data.image import Shape, decoded, is_picture, pixel_type
from medistill.data.preprocess import Preprocessing, TensorSplit
from medistill.errors import PackageError
from medistill.files import canonical_json, pretty_json, read_json, sha256_text
from medistill.package.card import card
from medistill.package.container import Files, read_files, write_files
from medistill.package.finding import Finding
from medistill.package.manifest import FORMAT_VERSION, ImagesSection, Manifest, PrivacySection
from medistill.package.parsing import parse_manifest
from medistill.package.results import EvaluationResult
from medistill.tasks.task import Task

Kinds = dict[str, tuple[tuple[int, ...], Any]]
"""Shape and type that an array must have, by name."""


@dataclass(frozen=True)
class Package:
    """A distilled set.

    Args:
        pixels: (n, c, *spatial) as stored, sorted by stratum; may be smaller than networks see them.
        targets: (n, outputs) what each stands for.
        strata: (n,) the stratum that each stands for.
        manifest: what it is.
        soft_labels: (n, outputs) probabilities to train on, values of half precision, or None.
        size_bytes: bytes of all files; 0 before it was written.
        source: fingerprint of the data that it was made from, where that is known: from the manifest or, as a private
            one does not say it, from the folder of its run.
    """

    pixels: Pixels
    targets: Targets
    strata: npt.NDArray[np.int64]
    manifest: Manifest
    soft_labels: SoftLabels | None = None
    size_bytes: int = 0
    source: str | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def task(self) -> Task:
        """What targets mean."""
        return self.manifest.made_task()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the task's outputs."""
        return tuple(self.manifest.task.class_names)

    @property
    def synthetic_per_stratum(self) -> list[int]:
        """Images of each stratum."""
        return np.bincount(self.strata, minlength=len(self.task.strata)).tolist()

    @property
    def preprocessing(self) -> Preprocessing:
        """How originals became pixels."""
        return self.manifest.preprocessing

    @property
    def stored_shape(self) -> Shape:
        """Lengths in space as stored."""
        return tuple(self.pixels.shape[2:])

    @property
    def data(self) -> TensorSplit:
        """The images as a training set, at the size that networks see."""
        soft = None if self.soft_labels is None else self.task.restored(self.soft_labels.astype(np.float16))
        return TensorSplit(decoded(self.pixels, self.preprocessing.image.shape), self.targets, soft)

    @property
    def identity(self) -> str:
        """SHA-256 over everything in it."""
        return self.manifest.package_id

    def with_evaluation(self, evaluation: EvaluationResult) -> Package:
        """The same package with results in its manifest."""
        guarantee, images = self.manifest.privacy.guarantee, dict(evaluation.images)
        if guarantee is not None:
            noisy = dict.fromkeys(("full", "full_balanced"), self.manifest.provenance.data.training_images)
            images |= {arm: number for arm, number in noisy.items() if arm in images}
            evaluation = evaluation.without_exact_numbers().model_copy(update={"images": images})
        changes = {"evaluation": evaluation, "privacy": self._beside_guarantee(["evaluation"])}
        return replace(self, manifest=self.manifest.model_copy(update=changes))

    def _beside_guarantee(self, names: Collection[str]) -> PrivacySection:
        """The section on privacy, which names what was measured on real images outside a guarantee."""
        privacy = self.manifest.privacy
        if privacy.guarantee is None:
            return privacy
        outside = sorted({*privacy.guarantee.outside, *names})
        return privacy.model_copy(update={"guarantee": privacy.guarantee.model_copy(update={"outside": outside})})

    def with_findings(self, findings: Sequence[Finding], on_real_images: Collection[str] | None = None) -> Package:
        """The same package with what audits found in its manifest, instead of former findings of the same checks.

        Args:
            findings: of checks.
            on_real_images: names of checks that looked at real images, which no guarantee covers; all, if None.
        """
        new = {finding.name for finding in findings}
        every = [*(former for former in self.manifest.audits if former.name not in new), *findings]
        looked = new if on_real_images is None else new & set(on_real_images)
        privacy, real = self._beside_guarantee(looked), any(finding.real_images for finding in every)
        privacy = privacy.model_copy(update={"contains_real_images": privacy.contains_real_images or real})
        return replace(self, manifest=self.manifest.model_copy(update={"audits": every, "privacy": privacy}))


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """A folder name per stratum: number, then the name's plain characters; sorted like the numbers."""
    digits = len(str(len(class_names) - 1))
    plain = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] for name in class_names]
    return [f"{i:0{digits}d}_{name}" if name else f"{i:0{digits}d}" for i, name in enumerate(plain)]


def package_files(package: Package) -> Files:
    """Every file of the package; equal packages give equal bytes."""
    files: Files = {"distilled.npz": _npz(package)}
    folders = folder_names(package.task.strata)
    digits = len(str(max(0, len(package) - 1)))
    for index, (pixels, stratum) in enumerate(zip(package.pixels, package.strata, strict=True)):
        files[f"images/{folders[stratum]}/{index:0{digits}d}.png"] = _png(preview(pixels))
    images = ImagesSection(
        count=len(package), per_stratum=package.synthetic_per_stratum, folders=folders,
        labels="hard" if package.soft_labels is None else "soft",
    )  # fmt: skip
    whole = package.manifest.model_copy(
        update={"format_version": FORMAT_VERSION, "images": images, "files": {}, "package_id": ""}
    )
    files["README.md"] = card(whole).encode()
    base = {k: v for k, v in whole.as_json().items() if k not in ("files", "package_id")}
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
    if "manifest.json" not in files:
        raise PackageError("has no manifest.json, so it is no package", where=path)
    manifest = parse_manifest(files["manifest.json"], f"{path}: manifest.json")
    _require_hashes(path, files, manifest)
    try:
        package = _package(files, manifest)
    except Exception as problem:  # decoders raise many kinds on files made to break them
        raise PackageError(f"its images do not fit its manifest ({problem})", where=path) from problem
    if "README.md" not in files:
        raise PackageError("has no README.md, so it is no package", where=path)
    return package if package.source else replace(package, source=_recorded_source(path, manifest))


def _recorded_source(path: Path, manifest: Manifest) -> str | None:
    """Fingerprint of the data in the record of the run beside a package, where that is of its configuration."""
    try:
        run = read_json(path.with_name(path.name + ".run") / "run.json")
    except (OSError, ValueError):
        return None
    configuration = manifest.provenance.configuration.model_dump(mode="json")
    return run.get("data") if isinstance(run, dict) and run.get("configuration") == configuration else None


def _require_hashes(path: Path, files: Files, manifest: Manifest) -> None:
    listed, present = manifest.files, set(files) - {"manifest.json"}
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


def _package(files: Files, manifest: Manifest) -> Package:
    section = manifest.images
    assert section is not None
    task, channels, shape = manifest.made_task(), manifest.image.channels, tuple(manifest.image.stored_shape)
    count = section.count
    last = () if channels == 1 else (channels,)
    labelled = ((count, 1), label_dtype(task)) if task.exclusive else ((count, task.outputs), np.dtype(np.uint8))
    kind = pixel_type(manifest.image.bits)
    kinds: Kinds = {"train_images": ((count, *shape, *last), kind), "train_labels": labelled}
    soft = section.labels == "soft"
    if soft:
        kinds["train_soft_labels"] = ((count, task.outputs), np.float16)
    arrays = _read_npz(files["distilled.npz"], kinds)
    pixels = np.moveaxis(arrays["train_images"].reshape(count, *shape, channels), -1, 1)
    labels = arrays["train_labels"].astype(np.int64)
    targets = task.targets(labels[:, 0] if task.exclusive else labels)
    strata = np.repeat(np.arange(len(section.per_stratum)), section.per_stratum)
    if not task.membership(targets)[np.arange(count), strata].all():
        raise ValueError("labels that do not fit their strata")
    names = [name for name in files if name.startswith("images/")]
    if len(names) != count:
        raise ValueError(f"{len(names)} PNG files for {count} images")
    for index, name in enumerate(sorted(names, key=lambda n: int(Path(n).stem))):
        if Path(name).parts[1] != section.folders[strata[index]]:
            raise ValueError(f"{name} is in the wrong class")
        expected = preview(pixels[index])
        if not np.array_equal(_read_png(files[name], expected), expected.transpose(1, 2, 0)):
            raise ValueError(f"{name} differs from distilled.npz")
    soft_labels = None
    if soft:
        task.restored(arrays["train_soft_labels"])  # raises where they are no probabilities
        soft_labels = arrays["train_soft_labels"].astype(np.float32)
    size = sum(len(content) for content in files.values())
    source = manifest.provenance.data.fingerprint
    return Package(np.ascontiguousarray(pixels), targets, strata, manifest, soft_labels, size, source)


def preview(pixels: Pixels) -> Pixels:
    """What is looked at of an image (c, *spatial): itself, or of a volume the middle slice along each axis, (c, h,
    w).
    """
    if is_picture(pixels.shape[1:]):
        return pixels
    slices = [np.take(pixels, pixels.shape[axis] // 2, axis=axis) for axis in (1, 2, 3)]
    height = max(plane.shape[1] for plane in slices)
    padded = [np.pad(plane, ((0, 0), (0, height - plane.shape[1]), (0, 0))) for plane in slices]
    return np.ascontiguousarray(np.concatenate(padded, axis=2))


def _npz(package: Package) -> bytes:
    images = np.moveaxis(package.pixels, 1, -1)
    images = images[..., 0] if images.shape[-1] == 1 else images
    stream = io.BytesIO()
    task = package.task
    labels = package.task.labels(package.targets)
    stored = labels[:, None].astype(label_dtype(task)) if task.exclusive else labels.astype(np.uint8)
    arrays: dict[str, npt.NDArray[Any]] = {"train_images": np.ascontiguousarray(images), "train_labels": stored}
    if package.soft_labels is not None:
        arrays["train_soft_labels"] = package.soft_labels.astype(np.float16)
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def label_dtype(task: Task) -> np.dtype[Any]:
    """Of class numbers as they are stored."""
    return np.dtype(np.uint8 if task.outputs <= 256 else np.uint16)


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
            actual, fortran, dtype = np.lib.format.read_array_header_1_0(raw)
            if actual != shape or fortran or dtype != kind:
                raise ValueError(f"{name} is {dtype} {actual}, expected {np.dtype(kind)} {shape}")
            arrays[name] = np.frombuffer(raw.read(), dtype=kind).reshape(shape).copy()
    return arrays


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _read_png(content: bytes, like: Pixels) -> Pixels:
    """A picture, (h, w, c), where it is of the size and depth of ``like`` (c, h, w)."""
    from PIL import Image

    channels, height, width = like.shape

    # Width, height, depth and colour type stand at a fixed place; another picture is not decoded.
    kind = struct.pack(">II", width, height) + bytes([8 * like.dtype.itemsize, 0 if channels == 1 else 2])
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[16:26] != kind:
        raise ValueError("a PNG of the wrong size or kind")
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
