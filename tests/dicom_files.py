"""DICOM files for tests: those that pydicom brings, and made ones."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
MORE = Path(pydicom.__file__).parent.parent / "data_store" / "data"


def found(name):
    for folder in (FILES, MORE):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not installed (pip install pydicom-data)")


def header(pixels=None, **changes):
    """A header of computed tomography."""
    made = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) if pixels is None else pixels
    values = {
        "Modality": "CT", "PatientID": "MRN-4711", "PatientName": "Doe^Jane", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize, "BitsStored": 8 * pixels.itemsize, "HighBit": 8 * pixels.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": 1, "RescaleIntercept": -1000,
        "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for name, value in (values | changes).items():
        if value is not None:
            setattr(made, name, value)
    return made


SECRETS = {"PatientName": "Doe^Jane", "InstitutionName": "Sankt Elisabeth", "StudyDescription": "Verlauf nach OP",
           "AccessionNumber": "ACC99117", "ManufacturerModelName": "Scanomat", "DeviceSerialNumber": "SN5521",
           "PatientBirthDate": "19620312", "StudyDate": "20240117"}  # fmt: skip
NESTED = ("1.2.826.0.1.3680043.77", "Befund Dr. Krause", "Privatelement 88")
"""What :func:`hospital` writes into sequences and a private element."""


def hospital(folder, images=24, size=24):
    """Class folders of computed tomography: two images of each patient, two scanners."""
    draw = np.random.default_rng(0)
    for kind, grey in (("healthy", 900), ("tumour", 1100)):
        (folder / kind).mkdir(parents=True)
        for number in range(images):
            pixels = (grey + draw.normal(0, 60, (size, size))).astype(np.int16)
            made = header(pixels, PatientID=f"PID-{kind}-{number // 2}", PixelSpacing=[0.5, 0.5], **SECRETS)
            made.DeviceSerialNumber = f"SN5521{number % 2}"
            inner, outer = pydicom.Dataset(), pydicom.Dataset()
            inner.ReferencedSOPInstanceUID, outer.ReasonForTheRequestedProcedure = NESTED[:2]
            outer.ReferencedStudySequence, made.RequestAttributesSequence = [inner], [outer]
            made.private_block(0x0011, "Krause", create=True).add_new(0x01, "LO", NESTED[2])
            made.save_as(folder / kind / f"IM{number:03d}.dcm", enforce_file_format=True)
    return folder
