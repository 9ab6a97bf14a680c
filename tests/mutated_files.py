"""Changed bytes of DICOM, NIfTI, picture and table files, read one after the other; run as a process of its own.

    python tests/mutated_files.py KIND COUNT SEED FOLDER

prints the slowest file's seconds, the peak of memory in MB above what was there before, and how many were read.
"""

from __future__ import annotations

import gzip
import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pyarrow as pa
from PIL import Image
from pyarrow.parquet import write_table

from dicom_files import found
from medistill.data.load import load
from medistill.data.pictures import ReadingOptions
from medistill.data.reading import read_one
from medistill.errors import MedistillError
from medistill.runtime import peak_memory_mb

DICOM = ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
         "MR_small_jpeg_ls_lossless.dcm", "ExplVR_BigEnd.dcm", "SC_rgb_small_odd_jpeg.dcm", "MR_small_implicit.dcm",
         "JPEG2000.dcm", "eCT_Supplemental.dcm", "image_dfl.dcm")  # fmt: skip
ADDRESS_SPACE = 8 * 2**30
"""Bytes, so that what asks for more is found and takes nothing from the machine."""


def pictures() -> list[tuple[str, bytes]]:
    draw, files = np.random.default_rng(0), []
    gray = Image.fromarray(draw.integers(0, 256, (40, 48), dtype=np.uint8))
    deep = Image.fromarray(draw.integers(0, 65536, (40, 48)).astype(np.uint16))
    colour = Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    for image, ending, options in (
        (gray, "png", {}), (deep, "png", {}), (colour, "png", {}), (colour.convert("P"), "png", {}),
        (colour, "jpg", {"quality": 90}), (gray, "tif", {"compression": "tiff_lzw"}), (colour, "tif", {}),
        (colour, "bmp", {}), (gray.convert("1"), "png", {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending), **options)
        files.append((f"x.{ending}", stream.getvalue()))
    return files


def volumes() -> list[tuple[str, bytes]]:
    draw, files = np.random.default_rng(0), []
    for values in (
        draw.integers(0, 2000, (12, 14, 10)).astype(np.int16), draw.random((12, 14, 10, 2), np.float32),
        draw.integers(0, 256, (12, 14, 1), dtype=np.uint8),
    ):  # fmt: skip
        plain = nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])).to_bytes()
        files += [("x.nii", plain), ("x.nii.gz", gzip.compress(plain, mtime=0))]
    return files


def tables() -> list[tuple[str, bytes]]:
    columns = ["file", "label", "patient", "split"]
    rows = [
        [f"im{number}.png", ("ill", "well")[number % 2], f"p{number // 2}", "train" if number < 8 else "test"]
        for number in range(12)
    ]
    excel, parquet, book = io.BytesIO(), io.BytesIO(), openpyxl.Workbook()
    for row in [columns, *rows]:
        book.active.append(row)
    book.save(excel)
    write_table(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), parquet)
    plain = "\n".join(map(",".join, [columns, *rows])).encode()
    return [
        ("labels.csv", plain), ("labels.csv", plain.replace(b",", b";")), ("labels.tsv", plain.replace(b",", b"\t")),
        ("labels.xlsx", excel.getvalue()), ("labels.parquet", parquet.getvalue()),
    ]  # fmt: skip


def changed(content: bytes, draw: np.random.Generator) -> bytes:
    """One to sixteen changes: bytes set, removed, put in, repeated, or the end cut off; most near the beginning."""
    made = bytearray(content)
    for _ in range(int(draw.choice([1, 1, 2, 4, 16]))):
        near = min(len(made), 1200) if draw.random() < 0.7 else len(made)
        at, kind = int(draw.integers(max(1, near))), draw.random()
        some = draw.integers(0, 256, int(draw.integers(1, 9)), dtype=np.uint8).tobytes()
        if kind < 0.35:
            made[at : at + 1] = some[:1]
        elif kind < 0.5:
            made[at : at + len(some)] = bytes([draw.choice([0, 255])]) * len(some)
        elif kind < 0.65:
            del made[at : at + len(some)]
        elif kind < 0.8:
            made[at:at] = some
        elif kind < 0.9:
            made[at:at] = made[at : at + 200]
        else:
            del made[at:]
    return bytes(made)


def of_file(path: Path) -> bool:
    """Whether a picture file was read; else its reason is one line."""
    done = read_one(path, ReadingOptions(), True)
    assert done.picture is not None or (done.reason or done.skipped)
    assert "\n" not in done.reason + done.skipped
    return done.picture is not None


def of_table(path: Path) -> bool:
    """Whether a table of labels was read; else its reason is one line."""
    try:
        load(path)
    except MedistillError as problem:
        assert "\n" not in str(problem)
        return False
    return True


KINDS: dict[str, tuple[Callable[[], list[tuple[str, bytes]]], Callable[[Path], bool]]] = {
    "dicom": (lambda: [("x.dcm", found(name).read_bytes()) for name in DICOM], of_file),
    "nifti": (volumes, of_file),
    "picture": (pictures, of_file),
    "table": (tables, of_table),
}


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    sources, read = KINDS[kind]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"im{number}.png")
    files = sources()
    for name, content in files:  # as it is, all of it is read; and what is loaded once is loaded
        (folder / name).write_bytes(content)
        assert read(folder / name), name
        (folder / name).unlink()
    before, slowest, good = peak_memory_mb(), 0.0, 0
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    draw = np.random.default_rng(seed)
    for _ in range(count):
        name, content = files[int(draw.integers(len(files)))]
        path = folder / name
        path.write_bytes(changed(content, draw))
        started = time.monotonic()
        good += read(path)
        slowest = max(slowest, time.monotonic() - started)
        path.unlink()
    print(f"{slowest:.3f} {peak_memory_mb() - before:.1f} {good}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
