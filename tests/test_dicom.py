"""DICOM files: numbers that mean the same in every file, and nothing of a header beyond them."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

import medistill
from medistill.config import DataConfig
from medistill.data.dicom import NoPicture, is_dicom, read_dicom
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.errors import DataError
from medistill.package.package import read_package

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
        "Modality": "CT", "PatientID": "4711", "PatientName": "Doe^Jane", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize, "BitsStored": 8 * pixels.itemsize, "HighBit": 8 * pixels.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"), "RescaleSlope": 1, "RescaleIntercept": -1000,
        "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for name, value in (values | changes).items():
        if value is not None:
            setattr(made, name, value)
    return made


def picture(tmp_path, *given, **changes):
    path = tmp_path / "x.dcm"
    header(*given, **changes).save_as(path, enforce_file_format=True)
    return read_dicom(path)


def stored(path):
    """What an uncompressed little-endian file stores, by numpy alone."""
    read = pydicom.dcmread(path)
    kind = f"<{'i' if read.PixelRepresentation else 'u'}{read.BitsAllocated // 8}"
    return np.frombuffer(read.PixelData, kind)[: read.Rows * read.Columns].reshape(read.Rows, read.Columns)


def test_hounsfield_units_are_exact():
    path = found("CT_small.dcm")
    shown, read = read_dicom(path), pydicom.dcmread(path)
    expected = stored(path) * float(read.RescaleSlope) + float(read.RescaleIntercept)
    assert shown.unit == "HU" and shown.frames.dtype == np.int16
    assert np.array_equal(shown.frames[0, 0], expected) and expected.min() > -1024


def test_the_rescale_of_an_enhanced_file_stands_in_its_functional_groups():
    shown = read_dicom(found("eCT_Supplemental.dcm"))
    assert (shown.frames.shape, shown.frames.min(), shown.frames.max()) == ((2, 1, 512, 512), -1024, 172)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MR_small.dcm", "MR_small_bigendian.dcm"), ("MR_small.dcm", "MR_small_RLE.dcm"),
        ("MR_small.dcm", "MR_small_implicit.dcm"), ("MR_small.dcm", "MR_small_jp2klossless.dcm"),
        ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm"), ("MR_small.dcm", "MR_small_expb.dcm"),
        ("MR_small.dcm", "MR_small_padded.dcm"), ("emri_small.dcm", "emri_small_big_endian.dcm"),
        ("emri_small.dcm", "emri_small_RLE.dcm"), ("emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm"),
        ("SC_rgb.dcm", "SC_rgb_rle.dcm"), ("SC_rgb.dcm", "SC_rgb_expb.dcm"), ("SC_rgb.dcm", "SC_rgb_16bit.dcm"),
        ("color-pl.dcm", "color-px.dcm"), ("OBXXXX1A.dcm", "OBXXXX1A_rle.dcm"), ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),
        ("693_UNCR.dcm", "693_J2KR.dcm"), ("RG1_UNCR.dcm", "RG1_J2KR.dcm"), ("MR2_UNCR.dcm", "MR2_J2KR.dcm"),
        ("US1_UNCR.dcm", "US1_J2KR.dcm"), ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
    ],
)  # fmt: skip
def test_however_pixels_are_coded_they_are_the_same(one, other):
    first, second = read_dicom(found(one)), read_dicom(found(other))
    assert np.array_equal(first.frames, second.frames) and first.modality == second.modality


@pytest.mark.parametrize(
    "name", ["SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_colours_are_turned_into_rgb_once(name):
    first, second = read_dicom(found("SC_rgb.dcm")).frames, read_dicom(found(name)).frames
    bars = slice(5, 95, 10)  # the middle of each bar, where lossy coding changes least
    difference = np.abs(first[0, :, bars, 50].astype(int) - second[0, :, bars, 50])
    assert difference.max() <= 8


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    pixels = np.array([[0, 100], [200, 255]], np.uint8)
    window = {
        "Modality": "DX",
        "RescaleSlope": None,
        "RescaleIntercept": None,
        "WindowCenter": 100.5,
        "WindowWidth": 101,
    }
    plain = picture(tmp_path, pixels, **window).frames[0, 0]
    inverted = picture(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1", **window).frames[0, 0]
    assert plain.tolist() == [[0, 128], [255, 255]] and inverted.tolist() == [[255, 128], [0, 0]]
    for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm"):
        path = found(name)
        read = pydicom.dcmread(path)
        assert read.PhotometricInterpretation == "MONOCHROME1"
        shown, values = read_dicom(path).frames[0, 0].astype(int), stored(path).astype(int)
        assert np.corrcoef(shown.ravel(), values.ravel())[0, 1] < -0.5, "what absorbs little is dark"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2.1: centre 2048, width 4096 maps 0 to 0 and 4095 to white
        (None, lambda x: x / 4095), ("LINEAR", lambda x: x / 4095),
        ("LINEAR_EXACT", lambda x: x / 4096), ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2048) / 4096))),
    ],
)  # fmt: skip
def test_windows_are_those_of_the_standard(tmp_path, function, expected):
    pixels = np.array([[0, 1000, 2048, 4095]], np.uint16)
    shown = picture(
        tmp_path, pixels, Modality="MR", RescaleSlope=None, RescaleIntercept=None, WindowCenter=2048, WindowWidth=4096,
        VOILUTFunction=function,
    )  # fmt: skip
    assert np.abs(shown.frames[0, 0] - 255 * expected(pixels.astype(float))).max() <= 0.5


def test_the_first_of_several_windows_and_none_at_all(tmp_path):
    pixels = np.linspace(0, 1000, 10_000).round().astype(np.uint16).reshape(100, 100)
    plain = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}
    two = picture(tmp_path, pixels, WindowCenter=[500, 40], WindowWidth=[1001, 80], **plain).frames
    one = picture(tmp_path, pixels, WindowCenter=500, WindowWidth=1001, **plain).frames
    assert np.array_equal(one, two)
    without = picture(tmp_path, pixels, **plain).frames[0, 0].astype(int)
    low, high = np.percentile(pixels, [0.5, 99.5])
    assert np.abs(without - 255 * ((pixels - low) / (high - low)).clip(0, 1)).max() <= 0.5


def test_tables_of_values_of_interest(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 10, 16], [0, 100, 500, 1000]
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    pixels = np.array([[0, 10, 11], [12, 13, 200]], np.uint16)
    shown = picture(
        tmp_path, pixels, Modality="DX", RescaleSlope=None, RescaleIntercept=None, VOILUTSequence=Sequence([table])
    )
    assert shown.frames[0, 0].tolist() == [[0, 0, 26], [128, 255, 255]]
    for name in ("vlut_04.dcm", "mlut_18.dcm"):
        frames = read_dicom(found(name)).frames
        assert frames.dtype == np.uint8 and frames.min() == 0 and frames.max() == 255


def test_padding_counts_for_nothing(tmp_path):
    pixels = np.full((8, 8), 1000, np.int16)
    pixels[2:6, 2:6] = 1040
    pixels[:2] = -2000
    shown = picture(tmp_path, pixels, PixelPaddingValue=-2000).frames[0, 0]
    assert shown[0, 0] == 0 and shown[3, 3] == 40, "as dark as the darkest that was measured"
    for name in ("693_UNCR.dcm", "693_UNCI.dcm"):
        assert read_dicom(found(name)).frames.min() == -1024, "also where lossy coding blurred it"


@pytest.mark.parametrize(
    ("name", "what"),
    [("liver.dcm", "a segmentation"), ("rtdose.dcm", "a radiotherapy dose"), ("test-SR.dcm", "Structured|SR Storage"),
     ("rtplan.dcm", "RT Plan"), ("waveform_ecg.dcm", "Waveform")],
)  # fmt: skip
def test_what_is_no_picture_is_named(name, what):
    with pytest.raises(NoPicture, match=what):
        read_dicom(found(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("MR_truncated.dcm", "cannot be read"), ("emri_small_jpeg_2k_lossless_too_short.dcm", "cut short"),
     ("JPEG-lossy.dcm", "cannot be read")],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(name, reason):
    with pytest.raises(DataError, match=reason) as raised:
        read_dicom(found(name))
    assert "\n" not in str(raised.value)


def test_more_pixels_than_a_file_can_have_are_refused_before_they_are_decoded(tmp_path):
    with pytest.raises(DataError, match="says that it has 65535x65535"):
        picture(tmp_path, Rows=65535, Columns=65535)


def test_files_without_a_preamble_are_known(tmp_path):
    made = header()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made.save_as(tmp_path / "x", enforce_file_format=True)
    content = (tmp_path / "x").read_bytes()
    start = content.find(b"\x08\x00\x16\x00")
    (tmp_path / "bare").write_bytes(content[start:])
    assert is_dicom(tmp_path / "bare")
    assert np.array_equal(read_dicom(tmp_path / "bare").frames[0, 0], np.arange(64).reshape(8, 8) - 1000)


SECRETS = {"PatientName": "Doe^Jane", "InstitutionName": "Sankt Elisabeth", "StudyDescription": "Verlauf nach OP",
           "AccessionNumber": "ACC99117", "ManufacturerModelName": "Scanomat", "DeviceSerialNumber": "SN5521",
           "PatientBirthDate": "19620312", "StudyDate": "20240117"}  # fmt: skip


def hospital(folder, images=24, size=24):
    """Class folders of computed tomography: two images of each patient, two scanners."""
    draw = np.random.default_rng(0)
    for kind, grey in (("healthy", 900), ("tumour", 1100)):
        (folder / kind).mkdir(parents=True)
        for number in range(images):
            pixels = (grey + draw.normal(0, 60, (size, size))).astype(np.int16)
            made = header(pixels, PatientID=f"PID-{kind}-{number // 2}", PixelSpacing=[0.5, 0.5], **SECRETS)
            made.DeviceSerialNumber = f"SN5521{number % 2}"
            made.save_as(folder / kind / f"IM{number:03d}.dcm", enforce_file_format=True)
    return folder


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


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
     "ExplVR_BigEnd.dcm", "SC_rgb_small_odd_jpeg.dcm", "MR_small_implicit.dcm", "JPEG2000.dcm", "eCT_Supplemental.dcm"],
)  # fmt: skip
def test_changed_bytes_lead_to_pixels_or_to_one_line(name, tmp_path):
    draw, content, path = np.random.default_rng(0), found(name).read_bytes(), tmp_path / "x.dcm"
    for _ in range(25):
        changed = bytearray(content)
        for _ in range(int(draw.choice([1, 2, 4, 16]))):
            at = int(draw.integers(min(len(changed), 1200) if draw.random() < 0.8 else len(changed)))
            kind, some = draw.random(), draw.integers(0, 256, int(draw.integers(1, 9)), dtype=np.uint8).tobytes()
            if kind < 0.5:
                changed[at] = some[0]
            elif kind < 0.7:
                del changed[at : at + len(some)]
            elif kind < 0.9:
                changed[at:at] = some
            else:
                del changed[max(10, at) :]
        path.write_bytes(changed)
        try:
            assert read_dicom(path).frames.dtype in (np.uint8, np.int16)
        except (NoPicture, DataError) as problem:
            assert "\n" not in str(problem)


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
    notes = load(source, DataConfig(size=(28, 28), channels=1)).description.notes
    assert "1 of 14 images looked at seem to show letters" in " ".join(notes) or "2 of 14" in " ".join(notes)
    assert "12 files of computed tomography are among others: -1000 to 1000 HU became black to white" in notes


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
        settings={"data": {"size": 28, "channels": 1, "unreadable": 0.08}},
    )  # fmt: skip
    assert len(read_package(tmp_path / "p")) == 2


def test_padding_of_inverted_pictures_is_dark(tmp_path):
    pixels = np.array([[10, 100], [200, 4095]], np.uint16)
    shown = picture(
        tmp_path, pixels, Modality="MG", PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4095,
        RescaleSlope=None, RescaleIntercept=None, WindowCenter=150, WindowWidth=300,
    ).frames[0, 0]  # fmt: skip
    assert shown[1, 1] == 0 and shown[0, 0] > shown[0, 1] > shown[1, 0]


@pytest.mark.parametrize(
    ("change", "dtype"),
    [({}, np.int16), ({"RescaleType": "US"}, np.int16), ({"RescaleType": "Z_EFF"}, np.uint8),
     ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, np.uint8)],
)  # fmt: skip
def test_only_tomography_itself_is_in_hounsfield_units(tmp_path, change, dtype):
    assert picture(tmp_path, **change).frames.dtype == dtype


def test_localizers_are_no_pictures_to_learn_from(tmp_path):
    with pytest.raises(NoPicture, match="localizer"):
        picture(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def test_a_split_of_nothing_but_other_objects_is_told(tmp_path):
    source = hospital(tmp_path / "set" / "train")
    (tmp_path / "set" / "test" / "tumour").mkdir(parents=True)
    segmentation = found("liver_1frame.dcm").read_bytes()
    (tmp_path / "set" / "test" / "tumour" / "seg.dcm").write_bytes(segmentation)
    assert "no image of test is left" in load(tmp_path / "set").description.notes
    for file in source.rglob("*.dcm"):
        file.write_bytes(segmentation)
    with pytest.raises(DataError, match="holds no training image that can be read; .*left out: a segmentation"):
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
