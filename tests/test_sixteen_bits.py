"""16 bits from the file to the package and back."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import MRImageStorage

from dicom_files import header
from medistill.config import DataConfig
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.dicom import read_dicom
from medistill.data.image import Normalisation, decoded, encoded, in_8_bits
from medistill.data.nifti import read_nifti
from medistill.data.preprocess import TensorSplit, channel_statistics, prepare, require_depth
from medistill.errors import ConfigError
from medistill.nets.bank import PixelBank
from medistill.package.package import read_package
from medistill.tasks.task import make_task


def deep(path, images=24, dark=20_000):
    """Two classes of 16-bit images in which the class is in the lower 8 bits alone."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(images) % 2
        noise = rng.integers(0, 12, (images, 16, 16))
        half = np.arange(16) < 8  # brighter above, or on the left
        where = np.where(labels[:, None, None] == 1, half[None, :, None], half[None, None, :])
        arrays[f"{split}_images"] = (dark + 60 * where + noise).astype(np.uint16)
        arrays[f"{split}_labels"] = labels[:, None]
    arrays["train_images"][0, 0, 0], arrays["train_images"][0, 0, 1] = 0, 65535
    np.savez(path, **arrays)
    return path


def dataset(images):
    task = make_task("binary", ("a", "b"))
    split = Split(images, task.targets(np.arange(len(images)) % 2))
    return Dataset({"train": split, "test": split}, Description("x", task))


def test_a_package_of_16_bits_says_so_and_keeps_what_8_bits_lose(tmp_path, cli):
    source = deep(tmp_path / "deep.npz")
    window = ["--set", "data.window=[0,65535]"]
    for bits in (8, 16):
        made = ["distill", source, "--method", "random", "--ipc", 2, "--factor", 1, *window]
        assert cli(*made, "--set", f"data.bits={bits}", "--out", tmp_path / str(bits))[0] == 0
    shallow, package = read_package(tmp_path / "8"), read_package(tmp_path / "16")
    assert package.pixels.dtype == np.uint16 and shallow.pixels.dtype == np.uint8
    assert package.manifest.image.bits == 16 and "bits" not in shallow.manifest.as_json()["image"]
    assert "pixel / 65535" in package.manifest.image.explained["normalise"]
    real = np.load(source)["train_images"]
    assert all((stored[0] == real).all(axis=(1, 2)).any() for stored in package.pixels), "the very numbers"
    assert len(np.unique(shallow.pixels)) <= 3 < 10 < len(np.unique(package.pixels))
    png = next((tmp_path / "16" / "images").rglob("*.png")).read_bytes()
    assert png[24] == 16 and np.asarray(Image.open(io.BytesIO(png))).max() > 255
    card = (tmp_path / "16" / "README.md").read_text()
    assert "gray, 16 bits" in card and "/ 65535" in card


@pytest.mark.parametrize("method", ["dm", "k-means"])
def test_every_command_takes_such_a_package(tmp_path, cli, method):
    source, package = deep(tmp_path / "deep.npz"), tmp_path / "package"
    steps = [] if method == "k-means" else ["--preset", "quick", "--set", "method.iterations=3"]
    made = ["distill", source, "--method", method, *steps, "--ipc", 2, "--factor", 2, "--set", "data.bits=16"]
    assert cli(*made, "--out", package)[0] == 0
    assert read_package(package).pixels.shape[2:] == (8, 8)
    few = ["--set", "recipe.min_steps=5", "--set", "recipe.max_steps=5"]
    draws = ["--set", "repeats=1", "--set", "random_draws=2"]
    status, _, problem = cli("audit", package, "--train", source)
    assert status == 0, problem
    assert cli("report", package, "--on", source, *few, *draws, "--out", tmp_path / "report.html")[0] == 0
    assert cli("train", package, "--on", source, *few)[0] == 0


def test_all_arms_see_the_depth_of_the_package(tmp_path, cli):
    """What 16 bits tell apart, networks of every arm tell apart, and of 8 bits none."""
    source, found = deep(tmp_path / "deep.npz"), {}
    for bits in (8, 16):
        made = ["distill", source, "--method", "random", "--ipc", 4, "--set", "data.window=[0,65535]"]
        assert cli(*made, "--set", f"data.bits={bits}", "--out", tmp_path / str(bits))[0] == 0
        few = [
            "--set",
            "repeats=1",
            "--set",
            "random_draws=2",
            "--set",
            "recipe.min_steps=60",
            "--set",
            "recipe.max_steps=60",
        ]
        status, out, problem = cli("evaluate", tmp_path / str(bits), "--on", source, *few, "--json")
        assert status == 0, problem
        arms = json.loads(out)["arms"]
        found[bits] = {arm: arms[arm]["balanced_accuracy"]["mean"] for arm in ("distilled", "random", "full")}
    assert min(found[16].values()) > 0.9 and max(found[8].values()) < 0.7, found


def test_a_folder_of_dicom_files_is_known_again_at_its_depth(tmp_path, cli):
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 4000, (20, 20)).astype(np.uint16)
        made = header(pixels, Modality="MR", SOPClassUID=MRImageStorage, PatientID=f"p{i}", RescaleIntercept=0)
        (tmp_path / "mr" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        made.save_as(tmp_path / "mr" / "ab"[i % 2] / f"{i}.dcm", enforce_file_format=True)
    distil = ["distill", tmp_path / "mr", "--method", "k-means", "--ipc", 2, "--set", "data.bits=16"]
    assert cli(*distil, "--out", tmp_path / "p")[0] == 0
    assert len(np.unique(read_package(tmp_path / "p").pixels)) > 256
    assert cli("audit", tmp_path / "p", "--train", tmp_path / "mr", "--checks", "resemblance")[0] == 0


def test_a_site_of_8_bits_is_measured_on(tmp_path, cli):
    source = deep(tmp_path / "deep.npz")
    made = ["distill", source, "--method", "random", "--ipc", 2, "--set", "data.bits=16"]
    assert cli(*made, "--out", tmp_path / "p")[0] == 0
    arrays = {k: v if "labels" in k else (v >> 8).astype(np.uint8) for k, v in np.load(source).items()}
    np.savez(tmp_path / "shallow.npz", **arrays)
    few = [
        "--set",
        "repeats=1",
        "--set",
        "random_draws=2",
        "--set",
        "recipe.min_steps=5",
        "--set",
        "recipe.max_steps=5",
    ]
    assert cli("evaluate", tmp_path / "p", "--on", tmp_path / "shallow.npz", *few)[0] == 0
    status, _, problem = cli("distill", tmp_path / "shallow.npz", *made[2:], "--out", tmp_path / "q")
    assert (
        status == 2 and "data.bits: 16 for images of 8 bits; allowed: 8" in problem and not (tmp_path / "q").exists()
    )


def test_changing_the_depth_is_found(tmp_path, cli):
    source = deep(tmp_path / "deep.npz")
    made = ["distill", source, "--method", "random", "--ipc", 2, "--set", "data.bits=16"]
    assert cli(*made, "--out", tmp_path / "p")[0] == 0
    manifest = tmp_path / "p" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bits": 16', '"bits": 8'))
    assert cli("train", tmp_path / "p", "--on", source)[0] == 2


def test_what_has_8_bits_or_colours_is_refused():
    config = DataConfig(bits=16)
    with pytest.raises(ConfigError, match="8 bits"):
        require_depth(dataset(np.zeros((4, 1, 16, 16), dtype=np.uint8)), config)
    with pytest.raises(ConfigError, match="colour"):
        require_depth(dataset(np.arange(4 * 3 * 256).reshape(4, 3, 16, 16).astype(np.uint16)), config)


def test_preparing_and_going_back_loses_less_than_a_step_of_65536():
    raw = np.random.default_rng(0).normal(0, 900, (6, 1, 16, 16)).astype(np.float32)
    prepared = prepare(dataset(raw), DataConfig(bits=16, window=(-6000.0, 6000.0)))
    back = prepared.preprocessing.raw(prepared.train.pixels)
    assert np.abs(back - raw).max() <= 12000 / 65535 / 2 + 1e-3
    pixels = prepared.train.pixels
    assert channel_statistics(pixels)[0][0] == pytest.approx(pixels.mean() / 65535)
    assert TensorSplit(pixels, prepared.train.targets).digest != TensorSplit(
        pixels.view(np.uint8).reshape(6, 1, 16, 32)[..., ::2], prepared.train.targets
    ).digest  # fmt: skip


def test_eight_bit_images_keep_their_full_scale_beside_16():
    raw = np.arange(4 * 256).reshape(4, 1, 16, 16).astype(np.uint16) * 60
    preprocessing = prepare(dataset(raw), DataConfig(bits=16)).preprocessing
    shallow = np.array([0, 1, 255], dtype=np.uint8).repeat(256)[None, None].reshape(1, 1, 16, 48)[..., ::3]
    levels = set(preprocessing.apply(np.ascontiguousarray(shallow)).ravel().tolist())
    assert levels == {0, 257, 65535}


def test_pixels_are_normalised_and_come_back_whatever_holds_them():
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 1, 8, 8)).astype(np.uint16)
    normal = Normalisation((0.5,), (0.25,), "none", 16)
    seen = normal.normalise(PixelBank(pixels, torch.device("cpu"))[torch.arange(5)])
    assert torch.allclose(seen, torch.from_numpy((pixels / 65535 - 0.5) / 0.25).float(), atol=1e-5)
    assert np.abs(normal.quantise(seen).numpy().astype(int) - pixels.astype(int)).max() <= 1
    assert decoded(encoded(pixels, (4, 4)), (8, 8)).dtype == np.uint16
    assert np.array_equal(in_8_bits(pixels), pixels // 256)


def test_readers_show_16_bits_when_asked(tmp_path):
    import nibabel

    path = get_testdata_file("MR_small.dcm")
    shallow, shown = read_dicom(path).frames, read_dicom(path, bits=16).frames
    assert shown.dtype == np.uint16 and len(np.unique(shown)) > len(np.unique(shallow))
    assert np.abs(shown / 257 - shallow).max() <= 0.51
    tomography = get_testdata_file("CT_small.dcm")
    assert np.array_equal(read_dicom(tomography).frames, read_dicom(tomography, bits=16).frames), "Hounsfield units"
    values = np.random.default_rng(0).normal(0, 300, (20, 18, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "x.nii")
    assert read_nifti(tmp_path / "x.nii", 16)[0].dtype == np.uint16
    assert len(np.unique(read_nifti(tmp_path / "x.nii", 16)[0])) > 4000
