"""The page of DICOM files that were read here and by another program, written to a file by ``make_results.py``."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

LEVELS = 2
"""Difference of two decoders of lossy pictures that is none to speak of."""


def dicom_page(files: list[dict[str, Any]]) -> str:
    """docs/results/dicom.md, from what ``benchmarks/dicom_table.py`` found."""
    by_code: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in files:
        by_code[file["coded"]].append(file)
    rows = ["| coded as | files | read | the same | within two levels | further apart | not read |", "|---" * 7 + "|"]
    for code, own in [*sorted(by_code.items()), ("**all**", files)]:
        read = [file for file in own if file["read"]]
        apart = [file["difference"] for file in read if file["difference"] is not None]
        same, near = sum(d == 0 for d in apart), sum(0 < d <= LEVELS for d in apart)
        rows.append(
            f"| {code} | {len(own)} | {len(read)} | {same} | {near} | {len(read) - same - near} "
            f"| {len(own) - len(read)} |"
        )
    hounsfield = [file for file in files if file["read"] == "HU"]
    exact = sum(file["difference"] == 0 for file in hounsfield)
    reasons = [f"- `{file['file']}`: {file['reason']}" for file in files if file["reason"]]
    further = [
        f"- `{file['file']}`: {file['second'] or file['difference']}"
        for file in files
        if file["read"] and (file["difference"] is None or file["difference"] > LEVELS)
    ]
    return (
        "# DICOM files\n\n"
        "Every file with pixels that pydicom, pydicom-data and nibabel bring, read here and by SimpleITK (GDCM), "
        "compared by `benchmarks/dicom_table.py`: Hounsfield units as they are read; of other gray pictures the "
        "values before they are displayed, rescaled; of colours what is displayed, in 8 bits. "
        f"Of {len(hounsfield)} files in Hounsfield units {exact} are the same to the unit, padding apart.\n\n"
        + "\n".join(rows)
        + "\n\n## Further apart\n\nColours of 16 and 32 bits in RLE are read here as uncompressed copies of the same "
        "pictures are (`tests/test_dicom.py`).\n\n" + ("\n".join(further) or "None.")
        + "\n\n## Not read, and why\n\n" + "\n".join(reasons) + "\n"
    )  # fmt: skip
