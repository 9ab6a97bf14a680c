"""A folder of small DICOM files read here, beside a plain loop of pydicom, as ratios of one run.

python benchmarks/dicom_speed.py [FILES]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medistill.data.load import load
from medistill.data.pictures import read_picture
from medistill.files import CACHE_VARIABLE

ROUNDS = 3
HEADER = {
    "Modality": "MR", "Manufacturer": "M", "ManufacturerModelName": "Z", "StudyDate": "20200101", "Rows": 28,
    "Columns": 28, "PixelSpacing": [1, 1], "WindowCenter": 500, "WindowWidth": 1000, "BitsAllocated": 16,
    "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "SamplesPerPixel": 1, "RescaleSlope": 1,
    "RescaleIntercept": 0, "PhotometricInterpretation": "MONOCHROME2", "SOPClassUID": MRImageStorage,
}  # fmt: skip


def write(root: Path, files: int) -> list[Path]:
    """Files of random pixels in two classes, four to a patient."""
    rng, paths = np.random.default_rng(0), []
    for number in range(files):
        made = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = MRImageStorage
        for name, value in HEADER.items():
            setattr(made, name, value)
        made.PatientID = f"p{number // 4}"
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        made.PixelData = rng.integers(0, 1000, (28, 28)).astype("<u2").tobytes()
        paths.append(root / "ab"[number % 2] / f"{number}.dcm")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """What it takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def main() -> None:
    """Write the files, read them in alternating rounds, print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder) / "data", int(sys.argv[1]) if sys.argv[1:] else 20_000)
        for turn in range(ROUNDS):
            os.environ[CACHE_VARIABLE] = str(Path(folder) / f"cache{turn}")
            plain = seconds(lambda: [pydicom.dcmread(path).pixel_array for path in paths])
            alone = seconds(lambda: [read_picture(path) for path in paths])
            whole = seconds(lambda: load(Path(folder) / "data"))
            again = seconds(lambda: load(Path(folder) / "data"))
            begun = "processes started" if turn == 0 else "processes there"
            print(
                f"{len(paths)} files, plain loop over: one process {plain / alone:.2f}, "
                f"load ({begun}) {plain / whole:.2f}; a second start {again:.1f} s"
            )


if __name__ == "__main__":
    main()
