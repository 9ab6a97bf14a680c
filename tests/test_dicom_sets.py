"""Sets of DICOM files: patients, scanners, other objects, several modalities, and no header's word beyond the reader."""

import shutil

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

import medistill
from dicom_files import NESTED, SECRETS, found, hospital
from medistill.config import DataConfig
from medistill.data.checks import check
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.errors import DataError
from medistill.package.package import read_package


def test_class_folders_of_dicom_are_distilled_and_name_nobody(tmp_path, cli):
    source = hospital(tmp_path / "set")
    dataset = load(source)
    assert dataset.image.dtype == "int16" and dataset.description.spacing == (0.5, 0.5)
    assert "by patient" in " ".join(dataset.description.notes)
    patients = [set(split.patients.tolist()) for split in dataset.splits.values()]
    assert not set.intersection(*patients[:2]) and set(dataset.train.sites.tolist()) == {"scanner 1", "scanner 2"}
    assert prepare(dataset).preprocessing.image.window == (-1000, 1000)
    assert prepare(
        load(source, DataConfig(window="brain")), DataConfig(window="brain")
    ).preprocessing.image.window == (0, 80)
    settings = {"method": {"name": "dm", "iterations": 4, "networks": 2, "filters": 8, "real_batch": 8}}
    medistill.distill(source, out=tmp_path / "p", ipc=2, settings=settings)
    package = read_package(tmp_path / "p")
    assert tuple(package.manifest.image.window) == (-1000, 1000)
    told = [path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()]
    told += [path.read_bytes() for path in (tmp_path / "p.run").rglob("*") if path.is_file()]
    _, out, err = cli("check", source)
    told += [out.encode(), err.encode()]
    for secret in (*SECRETS.values(), "PID-", "SN5521"):
        assert not any(secret.encode() in text for text in told), secret


def test_no_header_file_or_folder_is_named_anywhere(tmp_path, cli, monkeypatch):
    """Package, run folder, reports, what commands print, and the cache: no header's word, no file's or folder's name."""
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "cache"))
    source = hospital(tmp_path / "Erika Mustermann", images=16)
    uids = {str(pydicom.dcmread(file).SOPInstanceUID) for file in source.rglob("*.dcm")}
    tiny = [
        "--set",
        "method.iterations=3",
        "--set",
        "method.networks=2",
        "--set",
        "method.filters=8",
        "--set",
        "labels.recipe.max_steps=20",
        "--set",
        "labels.recipe.min_steps=20",
        "--set",
        "labels.recipe.width=8",
    ]
    small = ["--set", "recipe.max_steps=20", "--set", "recipe.min_steps=20", "--set", "recipe.width=8",
             "--set", "repeats=1", "--set", "random_draws=2", "--set", "bootstrap=100"]  # fmt: skip
    package, told = tmp_path / "out" / "p", []
    for call in (
        ["check", source, "--html", tmp_path / "out" / "check.html"],
        ["distill", source, "--ipc", 2, "--out", package, *tiny],
        ["evaluate", package, "--on", source, "--attach", *small],
        ["report", package, "--on", source, *small],
        ["audit", package, "--train", source, "--checks", "resemblance,exact_inclusion,text_in_pixels"],
        ["verify", package], ["train", package, "--on", source, *small],
    ):  # fmt: skip
        status, out, err = cli(*call)
        assert status == 0, (call, err)
        told.append((str(call[0]), (out + err).replace(str(source), "").encode()))
    for folder in (tmp_path / "out", tmp_path / "cache"):
        for file in folder.rglob("*"):
            told.append((str(file), str(file.relative_to(tmp_path)).encode()))
            told += [(str(file), file.read_bytes())] if file.is_file() else []
    manifest = read_package(package).manifest
    assert manifest.provenance.data.deidentification == ["113100 Basic Application Confidentiality Profile"]
    assert manifest.provenance.data.decoders["pydicom"] == pydicom.__version__
    for secret in (*SECRETS.values(), *NESTED, *uids, "PID-", "SN5521", "IM00", "Erika", "Mustermann"):
        assert not [where for where, text in told if secret.encode() in text], secret


def test_other_objects_are_counted_and_unreadable_files_named(tmp_path):
    source = hospital(tmp_path / "set")
    (source / "tumour" / "seg.dcm").write_bytes(found("liver_1frame.dcm").read_bytes())
    dataset = load(source)
    assert "1 DICOM files were left out: a segmentation" in dataset.description.notes
    assert len(dataset.train) + len(dataset.splits["test"]) + len(dataset.splits["val"]) == 48
    broken = source / "tumour" / "IM003.dcm"
    broken.write_bytes(broken.read_bytes()[:900])
    with pytest.raises(DataError, match=r"IM003.dcm: .*data.unreadable=0.03"):
        load(source)
    kept = load(source, DataConfig(unreadable=0.03))
    assert "1 files could not be read and were left out" in kept.description.notes
    assert sum(map(len, kept.splits.values())) == 47


def test_what_a_header_says_is_not_quoted_when_it_is_wrong(tmp_path, cli, recwarn, caplog):
    source = hospital(tmp_path / "set")
    path = source / "tumour" / "IM001.dcm"
    content = path.read_bytes()
    at = content.index(b"DS", content.index(b"\x28\x00\x52\x10"))  # the rescale's intercept
    path.write_bytes(content[: at + 4] + b"Jane " + content[at + 9 :])
    _, out, err = cli("check", source)
    assert "cannot be read" in err and "Jane" not in out + err
    assert not any("Jane" in str(warning.message) for warning in recwarn) and "Jane" not in caplog.text


def test_letters_are_sought_before_images_are_made_small(tmp_path):
    source = hospital(tmp_path / "set", images=6)
    for number, name in enumerate(("examples_rgb_color.dcm", "color3d_jpeg_baseline.dcm")):
        (source / "tumour" / f"us{number}.dcm").write_bytes(found(name).read_bytes())
    dataset = load(source, DataConfig(size=(28, 28), channels=1))
    told = [issue for issue in check(dataset) if issue.kind == "text in pixels"]
    assert {dataset.splits[split].named(row) for issue in told for split, row in issue.rows} <= {
        "tumour/us0.dcm", "tumour/us1.dcm",
    }  # fmt: skip
    assert told
    said = "12 files of computed tomography are among others: -1000 to 1000 HU became black to white"
    assert said in dataset.description.notes


def test_screenshots_and_what_headers_say_are_told_among_many_files(tmp_path):
    source = hospital(tmp_path / "set", images=65, size=64)
    page = Image.new("L", (64, 64))
    ImageDraw.Draw(page).text((2, 20), "SMITH J", fill=255, font=ImageFont.load_default(12))
    for name, kind, said in (("IM002", "7.1", "NO"), ("IM003", "2", "YES"), ("IM005", "2", "NO")):
        made = pydicom.dcmread(source / "tumour" / f"{name}.dcm")
        made.SOPClassUID, made.BurnedInAnnotation = f"1.2.840.10008.5.1.4.1.1.{kind}", said
        if said == "NO":
            made.PixelData = (np.asarray(page).astype(np.int16) * 8).tobytes()
        made.save_as(source / "tumour" / f"{name}.dcm")
    dataset = load(source)
    told = [issue for issue in check(dataset) if issue.kind == "text in pixels"]
    named = {dataset.splits[split].named(row) for issue in told for split, row in issue.rows}
    assert named == {"tumour/IM002.dcm", "tumour/IM003.dcm"}, "IM005 is among those that are not looked at"


def test_the_shared_files_and_a_table(tmp_path, real):
    folder = tmp_path / "dicom"
    shutil.copytree(real("dicom"), folder)
    lines = [
        "file,label",
        *(f"{f.name},{'colour' if 'color' in f.name else 'gray'}" for f in sorted(folder.glob("*.dcm"))),
    ]
    (folder / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"no_meta.dcm: is no DICOM file, or damaged; .*data.unreadable=0.08"):
        load(folder)
    dataset = load(folder, DataConfig(size=(28, 28), channels=1, unreadable=0.08))
    notes = dataset.description.notes
    for told in (
        "1 files could not be read and were left out", "1 DICOM files were left out: a segmentation",
        "2 files hold several frames, slices or volumes: the middle one, of volumes the first, was taken",
    ):  # fmt: skip
        assert told in notes
    assert sum(map(len, dataset.splits.values())) == 12
    medistill.distill(
        folder, out=tmp_path / "p", method="random", ipc=1,
        settings={"data": {"size": 28, "channels": 1, "unreadable": 0.08, "burned_in_text": "kept"}},
    )  # fmt: skip
    assert len(read_package(tmp_path / "p")) == 2
    with pytest.raises(DataError, match="train: .* images looked at seem to show letters"):
        medistill.distill(
            folder, out=tmp_path / "q", method="random", ipc=1,
            settings={"data": {"size": 28, "channels": 1, "unreadable": 0.08}},
        )  # fmt: skip


def test_a_split_of_nothing_but_other_objects_is_told(tmp_path):
    source = hospital(tmp_path / "set" / "train")
    (tmp_path / "set" / "test" / "tumour").mkdir(parents=True)
    segmentation = found("liver_1frame.dcm").read_bytes()
    (tmp_path / "set" / "test" / "tumour" / "seg.dcm").write_bytes(segmentation)
    assert "no image of test is left" in load(tmp_path / "set").description.notes
    for file in source.rglob("*.dcm"):
        file.write_bytes(segmentation)
    with pytest.raises(DataError, match="holds no train image that can be read; .*left out: a segmentation"):
        load(tmp_path / "set")


def test_the_share_that_is_advised_is_enough(tmp_path):
    source = hospital(tmp_path / "set", images=50)
    for file in sorted(source.rglob("*.dcm"))[:29]:
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"data.unreadable=0.29 leaves out"):
        load(source)
    assert sum(map(len, load(source, DataConfig(unreadable=0.29)).splits.values())) == 71


def test_one_file_without_a_patient_leaves_the_others_together(tmp_path):
    source = hospital(tmp_path / "set")
    made = pydicom.dcmread(source / "tumour" / "IM000.dcm")
    made.PatientID = ""
    made.save_as(source / "tumour" / "IM000.dcm")
    dataset = load(source)
    assert "1 of 48 images name no patient, and count as patients of their own" in dataset.description.notes
    patients = [set(split.patients.tolist()) for split in dataset.splits.values()]
    assert not patients[0] & patients[1] and not patients[0] & patients[2]


def test_a_window_counts_alike_alone_and_among_other_pictures(tmp_path):
    alone = hospital(tmp_path / "a")
    mixed = hospital(tmp_path / "b")
    (mixed / "tumour" / "mr.dcm").write_bytes(found("MR_small.dcm").read_bytes())
    config = DataConfig(size=(24, 24), window="lung")
    first, second = (prepare(load(source, config), config) for source in (alone, mixed))
    kept = {image.tobytes() for split in first.splits.values() for image in split.pixels}
    others = [image for split in second.splits.values() for image in split.pixels if image.tobytes() not in kept]
    assert len(others) == 1, "the picture that is none of tomography"


def test_the_class_may_be_an_attribute(tmp_path, cli):
    """In folders that mean nothing, and in a zip; a file without a value, and a picture, are left out and counted."""
    by_folder = load(source := hospital(tmp_path / "set", images=24))
    flat = tmp_path / "flat"
    for number, file in enumerate(sorted(source.rglob("*.dcm"))):
        header = pydicom.dcmread(file)
        header.BodyPartExamined = file.parent.name.upper()
        if number == 0:
            header.BodyPartExamined = ""
        (flat / f"day {number % 3}").mkdir(parents=True, exist_ok=True)
        header.save_as(flat / f"day {number % 3}" / f"{number}.dcm")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(flat / "logo.png")
    config = DataConfig(label_attribute="BodyPartExamined")
    dataset = load(flat, config)
    names = [name.upper() for name in by_folder.description.class_names]
    assert sorted(dataset.description.class_names) == sorted(names)
    count = sum(len(split) for split in dataset.splits.values())
    assert count == sum(len(split) for split in by_folder.splits.values()) - 1
    assert "2 images have no label and were left out" in dataset.description.notes
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", flat)
    assert load(packed, config).fingerprint == dataset.fingerprint
    settings = {"method": {"name": "random"}, "data": {"label_attribute": "BodyPartExamined"}}
    medistill.distill(flat, out=tmp_path / "p", ipc=2, settings=settings)
    status, out, _ = cli("audit", tmp_path / "p", "--train", flat, "--checks", "exact_inclusion")
    assert status == 0 and "fail" in out, "the package knows how its data are read"
    for given, source, message in (
        ("BodyPart", flat, "'BodyPart' is no DICOM attribute; allowed: a keyword, as BodyPartExamined"),
        ("PatientComments", flat, "images, none with a value of PatientComments"),
        ("SOPInstanceUID", flat, "different values in 49 files; allowed: an attribute whose value is a class"),
        ("BodyPartExamined", "phantom", "a folder of DICOM files, or a .zip of one"),
    ):
        status, _, err = cli("check", source, "--set", f"data.label_attribute={given}")
        assert status == 2 and message in err and err.count("\n") == 1, err


def test_files_of_several_spacings_are_resampled_to_one(tmp_path, cli):
    """A disc of 12 mm is as large in all, whatever a pixel was; beyond the size is cut, missing repeats the edge."""
    source = hospital(tmp_path / "set", images=8)
    for number, file in enumerate(sorted(source.rglob("*.dcm"))):
        header, side = pydicom.dcmread(file), (32, 64)[number % 2]
        step = 48 / side
        ys, xs = (np.mgrid[:side, :side] + 0.5) * step - 24
        header.Rows = header.Columns = side
        header.PixelSpacing = [step, step]
        header.PixelData = np.where(ys**2 + xs**2 < 12**2, 900, 100).astype(np.int16).tobytes()
        header.save_as(file)
    dataset = load(source, DataConfig(spacing=1, size=(40, 40)))
    assert dataset.description.spacing == (1, 1) and dataset.image.shape == (40, 40)
    images = np.concatenate([split.images for split in dataset.splits.values()]).astype(float)
    whole = images.max() - images.min()
    areas = ((images - images.min()) / whole).sum((1, 2, 3))
    assert np.allclose(areas, np.pi * 12**2, rtol=0.08)
    wider = load(source, DataConfig(spacing=1, size=(64, 64))).train.images
    assert (wider[:, :, :8] == wider[:, :, 8:9]).all() and (wider[:, :, 56:] == wider[:, :, 55:56]).all()
    for call, message in (
        (["check", source, "--set", "data.spacing=1"], "1 mm between pixels, without a size; allowed: with --size"),
        (["check", "phantom", "--set", "data.spacing=1"], "1, of images that say no spacing of their own"),
    ):
        status, _, err = cli(*call)
        assert status == 2 and message in err, err
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(next(iter(source.rglob("*.dcm"))).with_name("picture.png"))
    status, _, err = cli("check", source, "--set", "data.spacing=1", "--size", 32)
    assert status == 2 and "says no spacing, which data.spacing needs" in err
