"""Every DICOM file with pixels that pydicom, pydicom-data and nibabel bring, read here and by SimpleITK (GDCM).

    pip install SimpleITK && python benchmarks/dicom_table.py

writes ``docs/results/dicom.json``; ``make docs`` writes the page from it. Compared are Hounsfield units as they are
read; of other gray pictures the values before they are displayed, rescaled; of colours what is displayed.
"""

from __future__ import annotations

import gzip
import tempfile
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from sets import ROOT

from medistill.data import dicom
from medistill.errors import DataError
from medistill.files import pretty_json, write_atomically

RESULT = ROOT / "docs" / "results" / "dicom.json"


def sources() -> dict[str, list[Path]]:
    """Files by the package that brings them."""
    import data_store

    roots = {
        "pydicom": Path(pydicom.__file__).parent / "data" / "test_files",
        "pydicom-data": Path(data_store.__file__).parent / "data",
        "nibabel": Path(nibabel.__file__).parent / "nicom" / "tests" / "data",
    }
    return {name: sorted(file for file in root.rglob("*") if file.is_file()) for name, root in roots.items()}


def has_pixels(path: Path) -> bool:
    """Whether it is a DICOM file with pixels, of any kind."""
    try:
        header = pydicom.dcmread(path, force=True)
        return any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    except Exception:  # whatever a damaged file raises
        return False


def ours(path: Path) -> tuple[str, Any, str]:
    """Unit, frames (n, h, w) or (n, h, w, 3), and the reason where there are none."""
    try:
        picture = dicom.read_dicom(path)
    except dicom.NoPicture as problem:
        return "", None, f"left out: {problem}"
    except DataError as problem:
        return "", None, f"refused: {problem}"
    if picture.unit:
        return picture.unit, picture.frames[:, 0], ""
    if picture.frames.shape[1] == 3:
        return "colour", np.moveaxis(picture.frames, 1, -1), ""
    header = pydicom.dcmread(path, force=True)
    dicom._complete_meta(header)
    stored, _ = dicom._decoded(header, None)
    if "ModalityLUTSequence" in header:
        del header.ModalityLUTSequence
    return "gray", np.stack([dicom._rescaled(header, frame, number) for number, frame in enumerate(stored)]), ""


def theirs(path: Path) -> Any:
    """Frames as SimpleITK reads them, or the reason why it does not."""
    import SimpleITK as sitk

    try:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as problem:
        return " ".join(str(problem).split())[-80:]
    return values if values.ndim > 2 else values[None]


def difference(unit: str, mine: Any, other: Any, header: pydicom.Dataset) -> float | None:
    """Greatest difference of two readings; None where they have other shapes. What is darkest here may be padding.

    SimpleITK gives colours their own number of bits, inverts MONOCHROME1 before it rescales, and knows no tables of
    modality values; that is undone, or here too left away.
    """
    if mine.shape != other.shape:
        return None
    other = np.asarray(other, dtype=np.float64)
    if unit == "colour" and other.max() > 255:
        bits = 8 * max(1, int(header.BitsAllocated) // 8)
        palette = header.get("RedPaletteColorLookupTableDescriptor")
        other = np.floor(other / 2.0 ** ((int(palette[2]) if palette else bits) - 8))
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        other = 2 * intercept + slope * (2 ** int(header.BitsStored) - 1) - other
    apart = np.abs(mine.astype(np.float64) - other)
    if unit == dicom.HOUNSFIELD:
        apart = apart[mine > mine.min()]
    return float(apart.max(initial=0))


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for package, files in sources().items():
            for file in files:
                path = file
                if file.suffix == ".gz":
                    path = Path(folder) / file.stem
                    path.write_bytes(gzip.decompress(file.read_bytes()))
                if not has_pixels(path):
                    continue
                header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
                unit, mine, reason = ours(path)
                other = None if mine is None else theirs(path)
                compared = mine is not None and not isinstance(other, str)
                rows.append({
                    "package": package, "file": file.name, "coded": "not said" if syntax is None else syntax.name,
                    "read": unit, "reason": reason.replace(str(path), "it"),
                    "difference": difference(unit, mine, other, header) if compared else None,
                    "second": other if isinstance(other, str) else "",
                })  # fmt: skip
                print(rows[-1], flush=True)
    write_atomically(RESULT, pretty_json(rows))


if __name__ == "__main__":
    main()
