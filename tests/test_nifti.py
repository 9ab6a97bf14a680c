"""NIfTI files: one orientation whatever the file's, the same pixels as DICOM shows, slices or volumes."""

import nibabel
import numpy as np
import pytest

from medistill.config import DataConfig
from medistill.data.checks import check
from medistill.data.load import load
from medistill.data.nifti import read_nifti
from medistill.errors import DataError


def brain(seed=0, shape=(20, 24, 18)):
    """A volume (right, anterior, superior) that no mirror image is like."""
    draw = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    body = np.exp(-4 * (x**2 + y**2 + z**2)) + 0.4 * (x > 0.2) + 0.2 * (y > 0.1) + 0.1 * (z > 0)
    return (1000 * body + draw.normal(0, 1, shape)).astype(np.int16)


def save(path, volume, axes="RAS", zooms=(2.0, 3.0, 4.0)):
    """The same volume, stored along other axes."""
    image = nibabel.Nifti1Image(volume, np.diag([*zooms, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(axes)
    nibabel.save(
        image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)), path
    )
    return path


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "ASR", "SPL", "PIR"])
def test_every_orientation_gives_the_same_pixels(tmp_path, axes):
    volume = brain()
    pixels, spacing, volumes = read_nifti(save(tmp_path / "x.nii.gz", volume, axes))
    assert (pixels.shape, spacing, volumes) == ((18, 24, 20), (4.0, 3.0, 2.0), 1)
    low, high = np.percentile(volume, [0.5, 99.5])
    expected = 255 * ((volume - low) / (high - low)).clip(0, 1)
    # Rows go from front to back, columns from the patient's right to the left, as DICOM shows axial slices.
    assert np.abs(pixels[4, 5, 6] - expected[20 - 1 - 6, 24 - 1 - 5, 4]) <= 0.51
    assert np.abs(pixels - expected.transpose(2, 1, 0)[:, ::-1, ::-1]).max() <= 0.51


def test_of_several_volumes_the_first(tmp_path):
    both = np.stack([brain(), brain()[::-1]], axis=3)
    nibabel.save(nibabel.Nifti1Image(both, np.eye(4)), tmp_path / "x.nii")
    pixels, _, volumes = read_nifti(tmp_path / "x.nii")
    alone, _, _ = read_nifti(save(tmp_path / "y.nii", brain(), zooms=(1, 1, 1)))
    assert volumes == 2 and np.array_equal(pixels, alone)


def hospital(folder):
    for kind in ("healthy", "ill"):
        (folder / kind).mkdir(parents=True)
        for number in range(12):
            volume = brain(number)
            volume[8:12, 8:12, 7:11] += 700 * (kind == "ill")
            save(folder / kind / f"{number}.nii.gz", volume, ("RAS", "LPS")[number % 2])
    return folder


def test_class_folders_of_slices_and_of_volumes(tmp_path):
    source = hospital(tmp_path / "set")
    slices, volumes = load(source), load(source, DataConfig(slices="volume"))
    assert slices.image.shape == (24, 20) and volumes.image.shape == (18, 24, 20)
    assert slices.description.spacing == (3.0, 2.0) and volumes.description.spacing == (4.0, 3.0, 2.0)
    assert np.array_equal(slices.train.images, volumes.train.images[:, :, 9])
    assert [issue.kind for issue in check(volumes) if issue.kind == "faces"] == ["faces"]
    assert not any(issue.kind == "faces" for data in (slices, load("phantom:depth=16")) for issue in check(data))
    assert any("the middle one" in note for note in slices.description.notes)
    small = load(source, DataConfig(slices="volume", size=(16, 16)))
    assert small.image.shape == (16, 16, 16)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"not a volume" * 50, "cannot be read"), (None, "no finite number")]
)
def test_damaged_files_are_one_line(tmp_path, content, message):
    source = hospital(tmp_path / "set")
    if content is None:
        nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), source / "ill" / "a.nii")
    else:
        (source / "ill" / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match=f"a.nii: .*{message}") as raised:
        load(source)
    assert "\n" not in str(raised.value)


def test_the_shared_files_are_read(real):
    shapes = {path.name: read_nifti(path)[0].shape for path in sorted(real("nifti").iterdir())}
    assert shapes == {
        "anatomical.nii": (25, 41, 33), "example4d.nii.gz": (24, 96, 128), "example_nifti2.nii.gz": (12, 20, 32),
        "someones_anatomy.nii.gz": (56, 67, 57),
    }  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
def test_a_single_sagittal_or_coronal_slice_is_a_picture(tmp_path, axis):
    volume = brain(shape=(20, 24, 18)).take([7], axis=axis)
    pixels, spacing, _ = read_nifti(save(tmp_path / "x.nii", volume))
    assert pixels.shape == (1, 18, (24, 20)[axis]) and spacing[1:] == (4.0, (3.0, 2.0)[axis])


def test_pictures_among_volumes_are_refused(tmp_path):
    source = hospital(tmp_path / "set")
    save(source / "ill" / "flat.nii.gz", brain(shape=(20, 24, 1)))
    with pytest.raises(DataError, match=r"has pictures among volumes, for instance .*flat.nii.gz"):
        load(source, DataConfig(slices="volume", size=(16, 16)))
