"""DICOM files: numbers that mean the same in every file, and nothing of a header beyond them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, ImplicitVRLittleEndian

from dicom_files import found, header
from medistill.data.dicom import NoPicture, is_dicom, read_dicom
from medistill.errors import DataError


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


@pytest.mark.parametrize("name", ["16bit", "32bit", "16bit_2frame", "32bit_2frame"])
def test_colours_of_many_bits_are_the_same_however_they_are_coded(name):
    plain, coded = (read_dicom(found(f"SC_rgb_{how}{name}.dcm")).frames for how in ("", "rle_"))
    assert np.array_equal(plain, coded)


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


def test_codings_that_nobody_decodes_are_refused(tmp_path):
    """As of videos."""
    made = header()
    made.file_meta.TransferSyntaxUID = MPEG2MPML
    made.PixelData = encapsulate([b"no picture"])
    made.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="is coded in a way that is not read .*MPEG2"):
        read_dicom(tmp_path / "x.dcm")


def test_plain_pixels_are_those_of_the_decoder():
    """Of every file of the libraries that is read without it."""
    from pydicom.pixels.decoders.base import get_decoder

    from medistill.data.dicom_header import plain_gray, value_of

    seen = set()
    for path in sorted(Path(pydicom.__file__).parent.rglob("*.dcm")):
        try:
            frame = plain_gray(header := pydicom.dcmread(path, force=True))
        except AttributeError:
            continue  # no pixels, or not even a first group
        if frame is not None:
            decoded, _ = get_decoder(header.file_meta.TransferSyntaxUID).as_array(header)
            assert frame.dtype == decoded.dtype and np.array_equal(frame, decoded), path
            seen.add((frame.dtype.str, int(value_of(header, "BitsStored"))))
    assert len(seen) >= 3, "8 and 16 bits, signed and not, with bits to spare"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
def test_values_are_those_of_pydicom(name):
    from medistill.data.dicom_header import value_of

    fast, slow = (pydicom.dcmread(found(name)) for _ in range(2))
    for element in slow:
        if element.keyword and element.VR not in ("SQ", "OW", "OB", "PN"):
            ours, theirs = value_of(fast, element.keyword), element.value
            same = str(ours or "").strip() == str(theirs or "").strip()
            assert same or float(ours) == float(theirs), (element.keyword, ours, theirs)


def test_values_in_the_upper_bits_are_moved_down(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    shown = [
        picture(tmp_path, pixels, BitsStored=12, HighBit=high).frames[0, 0]
        for high, pixels in ((11, values), (15, values << 4))
    ]
    assert np.array_equal(shown[0], values.astype(int) - 1000) and np.array_equal(*shown)
