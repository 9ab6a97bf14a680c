"""Files from strangers: whatever is in them, one clear line, never a traceback, never an allocation bomb."""

import hashlib
import io
import json
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from conftest import npz_arrays
from medistill.data.load import load
from medistill.errors import DataError, MedistillError, PackageError
from medistill.files import canonical_json, sha256_text
from medistill.package.container import read_files, write_files, zip_bytes
from medistill.package.package import read_package

HUGE = 10**30


def _sealed(files, manifest):
    """The files with every hash as it should be, as a forger who knows the format would."""
    manifest = {k: v for k, v in manifest.items() if k != "package_id"}
    if isinstance(manifest.get("files"), dict):
        manifest["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "manifest.json"}
    try:
        manifest["package_id"] = sha256_text(canonical_json(manifest))
        text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False)
        return {**files, "manifest.json": (text + "\n").encode()}
    except (ValueError, UnicodeEncodeError):
        text = json.dumps({**manifest, "package_id": "0" * 64}, sort_keys=True, indent=2)
        return {**files, "manifest.json": (text + "\n").encode()}


def _refused(tmp_path, files, what=""):
    write_files(tmp_path / "forged", files)
    with pytest.raises(PackageError) as caught:
        read_package(tmp_path / "forged")
        pytest.fail(f"was accepted: {what}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def _places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))


FREE = {"method", "configuration", "evaluation", "notes", "inverse", "normalise", "resize", "title", "bibtex",
        "licence", "source", "medistill", "seed", "created_by", "name"}  # fmt: skip
"""What may hold any text or number of its kind."""

CHECKED = {("method",), ("configuration",), ("configuration", "data"), ("configuration", "data", "split_seed")}


def test_every_field_of_the_wrong_kind_is_refused(package, tmp_path):
    files = read_files(package)
    genuine = json.loads(files["manifest.json"])
    tried = 0
    for path in _places(genuine):
        if not path or path[0] in ("package_id", "evaluation") or (path[0] == "files" and len(path) > 1):
            continue
        for bad in (None, [], {}, "\ud800", float("nan"), 1e999, HUGE, -HUGE, [[]], True):
            manifest = json.loads(files["manifest.json"])
            place = manifest
            for part in path[:-1]:
                place = place[part]
            if type(place[path[-1]]) is type(bad) and not isinstance(bad, list):
                continue
            if FREE & set(map(str, path)) and path not in CHECKED:
                continue
            place[path[-1]] = bad
            _refused(tmp_path, _sealed(files, manifest), (path, bad))
            tried += 1
    assert tried > 150
    _refused(tmp_path, _sealed(files, {**genuine, "extra": 1}))
    for key in genuine:
        if key != "package_id":
            _refused(tmp_path, _sealed(files, {k: v for k, v in genuine.items() if k != key}))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(flips="sideways"),
        lambda m: m["class_names"].append("more"),
        lambda m: m.update(class_names=[m["class_names"][0]] * 3),
        lambda m: m["preprocessing"].update(std=[0.0]),
        lambda m: m["preprocessing"].update(mean=[0.5, 0.5]),
        lambda m: m["preprocessing"].update(size=[60000, 60000]),
        lambda m: m["preprocessing"].update(channels=3),
        lambda m: m["preprocessing"].update(window=[255.0, 0.0]),
        lambda m: m["images"].update(count=10**6),
        lambda m: m["images"].update(folders=["../a", "b", "c"]),
        lambda m: m.update(seed=0.5),
        lambda m: m["configuration"]["labels"]["recipe"].update(width=-4),
        lambda m: m["configuration"]["labels"].update(temperature=0),
        lambda m: m["preprocessing"].update(size=[4096, 4096]),
        lambda m: m["preprocessing"].update(std=[1e-300]),
        lambda m: m["class_names"].__setitem__(0, "a\x1b[31m"),
    ],
)
def test_consistent_nonsense_is_refused(package, tmp_path, change):
    files = read_files(package)
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    _refused(tmp_path, _sealed(files, manifest))


def _npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def _npz(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _bomb_header():
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 100), }"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(10)


@pytest.mark.parametrize("kind", ["bomb", "empty", "text", "extra", "labels", "float", "unsorted", "not a zip"])
def test_forged_arrays_are_refused(package, tmp_path, kind):
    files = read_files(package)
    with np.load(io.BytesIO(files["distilled.npz"])) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    members = {"train_images.npy": _npy(images), "train_labels.npy": _npy(labels)}
    members |= {
        "bomb": {"train_images.npy": _bomb_header()},
        "empty": {"train_images.npy": b""},
        "text": {"train_labels.npy": b"hello"},
        "extra": {"more.npy": _npy(images)},
        "labels": {"train_labels.npy": _npy(np.full_like(labels, 255))},
        "float": {"train_images.npy": _npy(images.astype(np.float32))},
        "unsorted": {"train_labels.npy": _npy(labels[::-1])},
    }.get(kind, {})
    content = b"hello" if kind == "not a zip" else _npz(members)
    forged = {**files, "distilled.npz": content}
    _refused(tmp_path, _sealed(forged, json.loads(files["manifest.json"])))


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
    _refused(tmp_path, _sealed({**files, name: content}, json.loads(files["manifest.json"])))


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
        ({"train_labels": lambda a: np.where(np.arange(len(a))[:, None] == 3, 10**9, a.astype(np.int64))}, "[3]"),
        ({"train_images": lambda a: a.astype(complex)}, "dtype complex128"),
        ({"train_images": lambda a: a[..., None, None]}, "has shape"),
        ({"train_patients": np.arange(3)}, "train_patients"),
        ({"class_names": np.array(["a", "a", "b"])}, "class"),
    ],
)
def test_odd_arrays(tmp_path, tiny, change, needed):
    from medistill.data.checks import require_usable

    arrays = npz_arrays(tiny)
    for key, value in change.items():
        arrays[key] = value(arrays[key]) if callable(value) else value
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(MedistillError) as caught:
        require_usable(load(tmp_path / "odd.npz"))
    assert needed in str(caught.value)


def test_negative_label_with_patients_and_one_split(tmp_path, tiny):
    from medistill.data.checks import check

    arrays = {k: v for k, v in npz_arrays(tiny).items() if k.startswith("train")}
    arrays["train_labels"] = arrays["train_labels"].astype(np.int64)
    arrays["train_labels"][2] = -4
    arrays["train_patients"] = np.array([f"é{i // 2}".encode() for i in range(len(arrays["train_labels"]))])
    np.savez(tmp_path / "p.npz", **arrays)
    assert "label range" in {p.kind for p in check(load(tmp_path / "p.npz"))}


def test_files_that_are_no_npz(tmp_path, tiny):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "array.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    (tmp_path / "text.npz").write_bytes(_npz({"train_images": b"hello", "train_labels.npy": _npy([0, 1])}))
    (tmp_path / "bomb.npz").write_bytes(_npz({"train_images.npy": _bomb_header(), "train_labels.npy": _npy([0, 1])}))
    (tmp_path / "other.npz").write_bytes(_npz({"readme.txt": b"hello"}))
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
        (lambda r: (r / "patients.csv").write_bytes("file,patient\na/0.png,M\xfcller".encode("latin-1")), "UTF-8"),
        (lambda r: (r / "patients.csv").write_text("file,patient\na/0.png\n"), "names no patient"),
        (lambda r: (r / "patients.csv").write_text("name,id\n"), "columns"),
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
    assert np.array_equal(load(root).train.images.shape[1:], (20, 24, 1))


def test_a_folder_name_that_is_no_text(tmp_path):
    import os

    root = _folder(tmp_path / "images")
    try:
        (root / "a").rename(root / os.fsdecode(b"\xff\xfe"))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(DataError, match="unprintable"):
        load(root)
