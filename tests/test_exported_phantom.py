"""One data set as DICOM, NIfTI, PNG and NumPy files gives the same pixels and the same package."""

import csv

import nibabel
import numpy as np
import pytest
from PIL import Image

import medistill
from dicom_files import SECRETS, header
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.preprocess import prepare

SMALL = {
    "method": {"iterations": 4, "networks": 2, "filters": 8, "real_batch": 12},
    "labels": {"teachers": 1, "calibrate": False, "recipe": {"max_steps": 20, "min_steps": 20, "width": 8}},
}


def as_png(path, pixels, number, patient):
    Image.fromarray(pixels).save(path.with_suffix(".png"))


def as_nifti(path, pixels, number, patient):
    """A slice of one voxel in depth; columns from the patient's right to the left, rows from front to back."""
    nibabel.save(nibabel.Nifti1Image(pixels[::-1, ::-1].T[:, :, None], np.eye(4)), path.with_suffix(".nii.gz"))


def as_dicom(path, pixels, number, patient):
    """By one scanner 8 bits; by the other 12 in 16, on another scale, which its window undoes; some inverted."""
    inverted = number % 3 == 0
    shown = 255 - pixels if inverted else pixels
    if number % 2:
        stored, window = shown, (128, 256)
    else:
        stored, window = (16 * shown.astype(np.uint16) + 7), (16 * 127.5 + 7.5, 16 * 255 + 1)
    made = header(
        stored, **SECRETS, Modality="CR", SOPClassUID="1.2.840.10008.5.1.4.1.1.1", RescaleSlope=None,
        RescaleIntercept=None, WindowCenter=window[0], WindowWidth=window[1], PatientID=patient,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )  # fmt: skip
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.DeviceSerialNumber = f"SN{number % 2}"
    made.save_as(path.with_suffix(".dcm"), enforce_file_format=True)


def exported(folder, dataset, save):
    """A table and files; the table says of each its label, split and patient."""
    (folder / "images").mkdir(parents=True)
    rows, number = [], 0
    for split, part in dataset.splits.items():
        for image, target, patient in zip(part.images, part.targets, part.patients, strict=True):
            name = f"im{number:05d}"
            save(folder / "images" / name, image[0], number, str(patient))
            rows.append([name, dataset.task.class_names[int(target.argmax())], split, patient])
            number += 1
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file", "label", "split", "patient"], *rows])
    return folder


def as_npz(folder, dataset):
    """Classes in alphabetical order, as a table's are."""
    folder.mkdir()
    order = np.argsort(dataset.task.class_names)
    content = {"class_names": np.array(dataset.task.class_names)[order]}
    for split, part in dataset.splits.items():
        content[f"{split}_images"] = part.images[:, 0]
        content[f"{split}_labels"] = np.argsort(order)[dataset.task.labels(part.targets)]
        content[f"{split}_patients"] = part.patients
    np.savez(folder / "phantom.npz", **content)
    return folder / "phantom.npz"


def test_every_format_gives_the_same_pixels_and_the_same_package(tmp_path):
    dataset = make_phantom(Phantom(classes=3, images=60, size=24))
    sources = {"npz": as_npz(tmp_path / "npz", dataset)}
    for kind, save in (("png", as_png), ("nifti", as_nifti), ("dicom", as_dicom)):
        sources[kind] = exported(tmp_path / kind, dataset, save)
    given = {"data": {"flips": "none"}}
    packages, prepared = {}, {}
    for kind, source in sources.items():
        prepared[kind] = prepare(load(source))
        medistill.distill(source, out=tmp_path / f"{kind}.package", ipc=2, settings={**SMALL, **given})
        packages[kind] = {f.name: f.read_bytes() for f in (tmp_path / f"{kind}.package").rglob("*") if f.is_file()}
    for kind in ("png", "nifti", "dicom"):
        for split in ("train", "val", "test"):
            ours, theirs = prepared["npz"].splits[split], prepared[kind].splits[split]
            assert np.array_equal(ours.pixels, theirs.pixels) and np.array_equal(ours.targets, theirs.targets), kind
        for name, content in packages["npz"].items():
            if name.endswith((".png", ".npz")):
                assert packages[kind][name] == content, (kind, name)
    assert set(load(sources["dicom"]).train.sites) == {"scanner 1", "scanner 2"}
    assert len(set(load(sources["dicom"]).train.patients)) == len(set(dataset.train.patients))


@pytest.mark.slow
def test_two_thousand_dicom_files_are_the_phantom(tmp_path):
    dataset = make_phantom(Phantom(classes=4, images=1148))
    source = exported(tmp_path / "dicom", dataset, as_dicom)
    read = load(source)
    assert sum(map(len, read.splits.values())) == sum(map(len, dataset.splits.values())) >= 2000
    for split, part in dataset.splits.items():
        assert np.array_equal(read.splits[split].images, part.images)
