"""Files from strangers: whatever is in them, one clear line, never a traceback, never an allocation bomb."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

import medistill
from conftest import SMALL_DM, npz_arrays
from forging import npy, npz, refused, sealed
from medistill.data.checks import require_usable
from medistill.data.load import load
from medistill.errors import DataError, MedistillError, PackageError
from medistill.package.container import read_files, zip_bytes
from medistill.package.package import read_package


def _bomb_header():
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 100), }"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(10)


@pytest.mark.parametrize(
    "kind", ["bomb", "empty", "text", "extra", "labels", "soft", "float", "unsorted", "not a zip"]
)
def test_forged_arrays_are_refused(package, tmp_path, kind):
    files = read_files(package)
    with np.load(io.BytesIO(files["distilled.npz"])) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    members = {"train_images.npy": npy(images), "train_labels.npy": npy(labels)}
    members |= {
        "bomb": {"train_images.npy": _bomb_header()},
        "empty": {"train_images.npy": b""},
        "text": {"train_labels.npy": b"hello"},
        "extra": {"more.npy": npy(images)},
        "labels": {"train_labels.npy": npy(np.full_like(labels, 255))},
        "soft": {"train_soft_labels.npy": npy(np.eye(3, dtype=np.float16)[labels[:, 0]])},
        "float": {"train_images.npy": npy(images.astype(np.float32))},
        "unsorted": {"train_labels.npy": npy(labels[::-1])},
    }.get(kind, {})
    content = b"hello" if kind == "not a zip" else npz(members)
    refused(tmp_path, sealed({**files, "distilled.npz": content}))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A package of volumes with findings."""
    out = tmp_path_factory.mktemp("volumes") / "p"
    source = "phantom:classes=2,images=24,size=16,width=18,depth=17,task=findings"
    medistill.distill(source, out=out, ipc=2, settings=SMALL_DM)
    return out


def _changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train_labels", lambda a: a * 2),
        ("train_labels", lambda a: _changed(a, 0, 0)),  # made for a finding, without it
        ("train_labels", lambda a: _changed(a, -1, 1)),  # made to have none, with all
        ("train_labels", lambda a: a.argmax(1)[:, None].astype(np.uint8)),
        ("train_labels", lambda a: a.astype(np.int64)),
        ("train_images", lambda a: _changed(a, (0, 8, 0, 0), 255 - a[0, 8, 0, 0])),  # in a slice that is shown
        ("train_images", lambda a: a[:, :16]),
        ("train_images", lambda a: a[..., None]),
    ],
)
def test_forged_volumes_and_findings_are_refused(volumes, tmp_path, name, change):
    files = read_files(volumes)
    with np.load(io.BytesIO(files["distilled.npz"])) as arrays:
        own = dict(arrays)
    assert own["train_images"].shape == (6, 17, 16, 18) and own["train_labels"].shape == (6, 2)
    members = {f"{key}.npy": npy(change(a) if key == name else a) for key, a in own.items()}
    refused(tmp_path, sealed({**files, "distilled.npz": npz(members)}))


@pytest.mark.parametrize("kind", ["short", "palette", "rgb", "huge", "jpeg"])
def test_forged_pictures_are_refused(package, tmp_path, kind):
    files = read_files(package)
    name = next(n for n in files if n.endswith(".png"))
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(files[name]))
    if kind == "short":
        content = files[name][:20]
    elif kind == "huge":
        content = files[name][:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + files[name][24:]
    else:
        image = image.convert({"palette": "P", "rgb": "RGB", "jpeg": "L"}[kind])
        image.save(stream, "JPEG" if kind == "jpeg" else "PNG")
        content = stream.getvalue()
    refused(tmp_path, sealed({**files, name: content}))


def test_zip_with_a_name_that_is_no_text(package, tmp_path):
    content = bytearray(zip_bytes(read_files(package)))
    place = content.rfind(b"distilled.npz")
    content[place] = 0xFF
    # Say that the name is UTF-8, which it is not.
    content[place - 46 + 9] |= 0x08
    (tmp_path / "p.zip").write_bytes(content)
    with pytest.raises(PackageError):
        read_package(tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"val_images": np.uint8(3)}, "val_images"),
        ({"train_labels": np.uint8(3)}, "train_labels"),
        ({"test_labels": lambda a: np.stack([a.ravel()] * 2, 1)}, "test_labels"),
        ({"test_labels": lambda a: np.where(np.arange(len(a))[:, None] == 4, 3, a)}, "test_labels[4] is 3"),
        ({"train_sites": np.arange(3)}, "train_sites"),
        ({"task": np.array("triage")}, "unknown task 'triage'"),
        ({"task": np.array("binary")}, "3 classes"),
        ({"task": np.array([])}, "unknown task"),
        ({"train_labels": lambda a: np.where(np.arange(len(a))[:, None] == 3, 10**9, a.astype(np.int64))}, "[3]"),
        ({"train_images": lambda a: a.astype(complex)}, "dtype complex128"),
        ({"train_images": lambda a: a[..., None, None, None]}, "has shape"),
        ({"train_images": lambda a: a[..., None, None]}, "train 1x16x16x1, val 1x16x16"),
        ({"train_patients": np.arange(3)}, "train_patients"),
        ({"class_names": np.array(["a", "a", "b"])}, "class"),
    ],
)
def test_odd_arrays(tmp_path, tiny, change, needed):
    arrays = npz_arrays(tiny)
    for key, value in change.items():
        arrays[key] = value(arrays[key]) if callable(value) else value
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(MedistillError) as caught:
        require_usable(load(tmp_path / "odd.npz"))
    assert needed in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "row", "needed"),
    [
        ("multi-class", [1, 1, 0], "train_labels[4] "),
        ("multi-class", [0, 0, 0], "train_labels[4] "),
        ("multi-class", [0, 257, 0], "train_labels[4] "),  # 1 in eight bits
        ("multi-class", [0, -255, 0], "train_labels[4] "),
        ("multi-label", [0, 2, 0], "train_labels[4] is [0, 2, 0]"),
        ("multi-label", [0, 257, 1], "train_labels[4] is [0, 257, 1]"),
    ],
)
def test_columns_that_are_no_labels(tmp_path, tiny, kind, row, needed):
    arrays = npz_arrays(tiny)
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.eye(3, dtype=np.int64)[arrays[f"{split}_labels"][:, 0]]
    arrays["train_labels"][4] = row
    np.savez(tmp_path / "odd.npz", **arrays, task=np.array(kind))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "odd.npz")
    assert f"odd.npz: {needed}" in str(caught.value)


def test_negative_label_with_patients_and_one_split(tmp_path, tiny):
    arrays = {k: v for k, v in npz_arrays(tiny).items() if k.startswith("train")}
    arrays["train_labels"] = arrays["train_labels"].astype(np.int64)
    arrays["train_labels"][2] = -4
    arrays["train_patients"] = np.array([f"é{i // 2}".encode() for i in range(len(arrays["train_labels"]))])
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DataError, match=r"p\.npz: train_labels\[2\] is -4 \(1 images\)"):
        load(tmp_path / "p.npz")


def test_files_that_are_nonpz(tmp_path, tiny):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "array.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    (tmp_path / "text.npz").write_bytes(npz({"train_images": b"hello", "train_labels.npy": npy([0, 1])}))
    (tmp_path / "bomb.npz").write_bytes(npz({"train_images.npy": _bomb_header(), "train_labels.npy": npy([0, 1])}))
    (tmp_path / "other.npz").write_bytes(npz({"readme.txt": b"hello"}))
    for name in ("array", "text", "bomb", "other", "x" * 300, "~nosuchuserhere/a"):
        with pytest.raises(DataError) as caught:
            load(name + ".npz" if name.startswith("~") else str(tmp_path / f"{name}.npz"))
        assert "\n" not in str(caught.value)


def _folder(root, count=4):
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((20, 24), 10 * i, np.uint8)).save(root / label / f"{i}.png")
    return root


def _png16(path, colour, samples):
    # Pillow writes no such PNG, so its chunks are put together by hand.
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(24 * 2 * samples) for _ in range(20))
    head = struct.pack(">IIBBBBB", 24, 20, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def _tiff16(path):
    # Nor such a TIFF: little-endian, one strip, three samples of 16 bits.
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
            (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 96)]  # fmt: skip
    content = struct.pack("<HHH", 16, 16, 16) + bytes(96)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def _pages(path):
    page = Image.new("L", (24, 20))
    page.save(path.with_suffix(".tiff"), save_all=True, append_images=[page])


def _bomb(path):
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
        + bytes(4)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "needed"),
    [
        (lambda r: _png16(r / "a" / "x.png", 2, 3), "16 bits per sample in colour"),
        (lambda r: _png16(r / "a" / "x.png", 4, 2), "16 bits per sample in colour or with transparency"),
        (lambda r: _tiff16(r / "a" / "x.tif"), "16 bits per sample in colour"),
        (lambda r: _pages(r / "a" / "x.png"), "2 pages"),
        (lambda r: _bomb(r / "a" / "x.png"), "x.png"),
        (lambda r: (r / "a" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "x.png"),
        (
            lambda r: (r / "patients.csv").write_bytes("file,patient\na/0.png,M\xfcller".encode("latin-1")),
            "names no patient",
        ),
        (lambda r: (r / "patients.csv").write_text("file,patient\na/0.png\n"), "names no patient"),
        (lambda r: (r / "patients.csv").write_text("name,note\na/0.png,x\n"), "columns name, note"),
        (
            lambda r: (r / "patients.csv").write_text("file,patient\na/0.png,P\na/0.png,Q\n"),
            "two patients for a/0.png",
        ),
        (lambda r: (r / "patients.csv").write_text("file,patient\na\\0.png,P\n"), "with / between folders"),
        (
            lambda r: (r / "a").rename(r / "train") and _folder(r / "extra"),
            "in 'b', which is no split, beside train",
        ),
    ],
)
def test_odd_folders(tmp_path, spoil, needed):
    root = _folder(tmp_path / "images")
    spoil(root)
    with pytest.raises(DataError) as caught:
        load(root)
    assert needed in str(caught.value) and "\n" not in str(caught.value)


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "val", "validation"):
        _folder(tmp_path / name)
    with pytest.raises(DataError, match="both 'val' and 'validation'"):
        load(tmp_path)


def test_photographs_are_turned_as_their_tag_says(tmp_path):
    root = _folder(tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(20 * 24, dtype=np.uint8).reshape(24, 20)
    Image.fromarray(pixels).save(root / "a" / "9.png", exif=exif)
    assert load(root).train.images.shape[1:] == (1, 20, 24)


def test_a_folder_name_that_is_no_text(tmp_path):
    import os

    root = _folder(tmp_path / "images")
    try:
        (root / "a").rename(root / os.fsdecode(b"\xff\xfe"))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(DataError, match="unprintable"):
        load(root)
