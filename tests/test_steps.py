"""Steps of preprocessing: what each does, alone and on the way from a source to a package."""

import json

import numpy as np
import pytest
from skimage.exposure import equalize_adapthist

import medistill
from conftest import SMALL_DM, TINY
from medistill.config import PrivacyConfig
from medistill.data.dataset import Dataset
from medistill.data.image import ImageSpec, Normalisation
from medistill.data.load import load
from medistill.data.preprocess import Preprocessing, prepare
from medistill.data.step import Step, StepRecord, register_step, stepped, steps
from medistill.data.steps.clahe import Clahe
from medistill.data.steps.clip import Clip
from medistill.data.steps.crop import Crop
from medistill.data.steps.rescale import Rescale
from medistill.data.steps.stain import Stain
from medistill.errors import ConfigError
from medistill.settings import DataConfig
from medistill.testing import StepConformance, sample_images

SOURCE = "phantom:classes=3,images=60,size=32"


for _name in sorted(steps()):
    globals()[f"Test{_name.capitalize()}"] = type(f"Test{_name.capitalize()}", (StepConformance,), {"step": _name})


def test_clipping_is_by_percentiles_of_all_training_images():
    given = sample_images("int16", (1, 24, 20))
    step = Clip(percentiles=(10, 80)).fitted(given)
    low, high = np.percentile(given, [10, 80])
    assert step.window == (low, high) and step.of_8_bits is False
    assert np.array_equal(step.apply(given).images, given.clip(low, high).astype(np.float32))
    outside = 100 * ((given < low) | (given > high)).mean()
    assert step.told(given) == f"{outside:.2g} % of training pixels lie outside {low:g} to {high:g} and were clipped"
    with pytest.raises(ConfigError, match=r"clip: images of uint8; allowed: images of more than 8 bits"):
        step.require(sample_images("uint8", (1, 24, 20)))


def test_images_of_8_bits_are_spread_over_the_full_scale():
    given = np.arange(100, 164, dtype=np.uint8).reshape(1, 1, 8, 8)
    done = Clip(window=(110, 150)).fitted(given).apply(given).images
    assert done.min() == 0 and done.max() == 255 and done[0, 0, 2, 4] == round(255 * 10 / 40)


def test_each_image_is_rescaled_between_its_own_percentiles():
    given = sample_images("float32", (3, 24, 20))
    done = Rescale(percentiles=(5, 95)).apply(given).images
    for one, made in zip(given, done, strict=True):
        low, high = np.percentile(one, [5, 95])
        assert np.allclose(made, ((one - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert np.allclose(Rescale().apply(given * 3 + 2).images, Rescale().apply(given).images, atol=1e-5)


def test_the_foreground_fills_the_image():
    given = np.zeros((3, 1, 32, 32), dtype=np.uint8)
    given[0, 0, 8:24, 10:26] = 200
    given[1, 0, 4:12, 4:20] = 100
    given[2] = 9
    done = Crop().apply(given)
    assert (done.images[0] == 200).all() and (done.images[1] == 100).all(), "the aspect is kept, the edge repeated"
    assert (done.images[2] == 9).all()
    wider = Crop(margin=8).apply(given[:1]).images
    assert (wider[0, 0, :6] == 0).all() and (wider[0, 0, 14:18, 14:18] == 200).all()


def test_a_margin_ends_at_the_border():
    given = np.zeros((2, 1, 32, 32), dtype=np.uint8)
    given[0, 0, 2:, 2:] = 200
    given[1, 0, 4:20, 4:20] = 200
    done = Crop(margin=8).apply(given)
    assert np.array_equal(done.images[0], given[0]) and done.left == 0, "all of it is foreground or margin"
    assert (done.images[1, 0, 6:20, 6:20] == 200).all() and (done.images[1] == 200).mean() > 0.27


def test_volumes_of_few_columns_are_no_colours():
    given = np.random.default_rng(0).integers(0, 255, (2, 1, 16, 16, 4)).astype(np.uint8)
    assert Clahe(tiles=2).apply(given).images.shape == given.shape
    with pytest.raises(ConfigError, match=r"64 tiles along each of 3 sides; allowed: up to 4096 in all"):
        Clahe(tiles=64).require(given)


def test_contrast_is_equalised_as_scikit_image_does():
    given = sample_images("uint8", (1, 32, 32))
    done = Clahe(tiles=4, clip_limit=0.02).apply(given).images
    values = (given[0, 0] - given[0, 0].min()) / np.ptp(given[0, 0].astype(float))
    assert np.array_equal(done[0, 0], np.rint(255 * equalize_adapthist(values, kernel_size=(8, 8), clip_limit=0.02)))
    gray = np.repeat(given, 3, axis=1)
    coloured = Clahe().apply(gray).images
    assert np.array_equal(coloured[:, 0], coloured[:, 1]), "gray has no hue"


def stained(colours, seed=0):
    """An image (1, 3, 48, 48) of two stains of those optical densities, with the same tissue for each seed."""
    draw = np.random.default_rng(seed)
    amount = draw.gamma(1.5, 0.6, (2, 48 * 48)) * (draw.random((2, 48 * 48)) < 0.7)
    density = np.array(colours).T @ amount
    return (255 * np.exp(-density)).clip(0, 255).astype(np.uint8).reshape(1, 3, 48, 48)


def test_two_laboratories_stains_become_alike():
    one = stained([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11)])
    other = stained([(0.50, 0.80, 0.33), (0.20, 0.93, 0.30)])
    step = Stain()

    def apart(a, b):
        return float(np.abs(a.astype(float) - b.astype(float)).mean())

    assert apart(step.apply(one).images, step.apply(other).images) < 0.5 * apart(one, other)
    blank = np.full((2, 3, 24, 24), 250, dtype=np.uint8)
    done = step.apply(blank)
    assert done.left == 2 and np.array_equal(done.images, blank)
    with pytest.raises(ConfigError, match=r"stain: int16, 1 channels, 2 dimensions; allowed: colour pictures"):
        step.require(sample_images("int16", (1, 24, 20)))


def test_steps_are_taken_in_order_and_recorded(tmp_path):
    config = DataConfig(steps=["crop", {"name": "clahe", "tiles": 4}])
    dataset = load(SOURCE, config)
    prepared = prepare(dataset, config)
    assert [(step.name, step.options) for step in prepared.preprocessing.steps] == [
        ("crop", {"threshold": 0.05, "margin": 0}),
        ("clahe", {"tiles": 4, "clip_limit": 0.01}),
    ]
    for name, split in dataset.splits.items():
        wanted = Clahe(tiles=4).apply(Crop().apply(split.images).images).images
        assert np.array_equal(prepared.splits[name].pixels, wanted)
    assert not np.array_equal(prepared.train.pixels, prepare(dataset).train.pixels)


def test_a_package_says_its_steps_and_others_are_prepared_by_them(tmp_path):
    taken = ["clip", {"name": "rescale", "percentiles": [1, 99]}]
    settings = {**SMALL_DM, "data": {"steps": taken}}
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, settings=settings)
    package = medistill.read_package(tmp_path / "p")
    written = json.loads((tmp_path / "p" / "manifest.json").read_text())
    steps_of = written["image"]["steps"]
    assert [step["name"] for step in steps_of] == ["clip", "rescale"] and steps_of[0]["options"]["window"]
    card = (tmp_path / "p" / "README.md").read_text()
    assert "same steps of preprocessing: clip (percentiles [0.5, 99.5], window [" in card
    prepared = prepare(load(SOURCE), DataConfig(steps=taken))
    assert package.preprocessing == prepared.preprocessing
    assert any("were clipped" in note for note in written["provenance"]["data"]["notes"])
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=TINY)
    assert result["arms"]["distilled"]
    assert medistill.train(tmp_path / "p", on="phantom:classes=3,images=60,size=32,site=b", config=TINY)["metrics"]


def test_without_steps_nothing_is_said_of_them(tmp_path):
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, settings=SMALL_DM)
    assert '"steps": [' not in (tmp_path / "p" / "manifest.json").read_text()


def test_a_step_of_another_program_is_needed_only_to_prepare_other_images():
    image = ImageSpec(1, (32, 32))
    foreign = Preprocessing(image, Normalisation((0.5,), (0.25,)), (StepRecord("sharpen-of-others", {"by": 2}),))
    with pytest.raises(ConfigError, match=r"data\.steps: unknown step 'sharpen-of-others'; allowed: clahe, clip"):
        foreign.apply(sample_images("uint8", (1, 32, 32)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["clahee"], "did you mean 'clahe'"),
        ([{"name": "clahe", "tile": 4}], "did you mean 'tiles'"),
        ([{"name": "clahe", "tiles": 0}], "data.steps, clahe.tiles: 0"),
        ([{"name": "clip", "percentiles": [90, 10]}], "percentiles 90 to 10"),
        ([{"tiles": 4}], "is no step"),
        (3, "data.steps"),
    ],
)
def test_what_is_wrong_about_steps_is_told_in_one_line(given, message):
    with pytest.raises(ConfigError) as refused:
        medistill.distill(SOURCE, out="nowhere", ipc=2, settings={**SMALL_DM, "data": {"steps": given}})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_guarantee_allows_no_step_that_looks_at_training_images():
    dataset = load(SOURCE)
    with pytest.raises(ConfigError, match="'clip' looks at training images"):
        prepare(dataset, DataConfig(steps=["clip"], statistics="public"))
    prepare(dataset, DataConfig(steps=[{"name": "clip", "window": [10, 200]}, "crop"], statistics="public"))
    for told in (medistill.check, medistill.predict):
        with pytest.raises(ConfigError, match="'clip' looks at training images"):
            told(SOURCE, config=DataConfig(steps=["clip"]), privacy=PrivacyConfig(epsilon=1.0))


def test_a_window_comes_before_steps():
    dataset = load(SOURCE)
    deep = Dataset(
        {n: type(s)(s.images.astype(np.int16) * 16 - 1000, s.targets) for n, s in dataset.splits.items()},
        dataset.description,
    )
    prepared = prepare(deep, DataConfig(window=(-500, 1500), steps=["rescale"]))
    assert [step.name for step in prepared.preprocessing.steps] == ["clip", "rescale"]
    assert prepared.preprocessing.image.window == (0.0, 1.0)
    wanted = Rescale().apply(deep.train.images.clip(-500, 1500).astype(np.float32)).images
    assert np.array_equal(prepared.train.pixels, np.rint(255 * wanted).astype(np.uint8))


def test_large_sets_are_changed_block_by_block(monkeypatch):
    from medistill.data import arrays

    given = sample_images("uint8", (1, 24, 20))
    whole = stepped(given, [Crop(), Clahe()])
    monkeypatch.setattr(arrays, "BLOCK", 10_000)
    parts = stepped(given, [Crop(), Clahe()])
    assert np.array_equal(whole.images, parts.images) and whole.left == parts.left


def test_a_step_can_come_from_another_program():
    @register_step
    class Invert(Step):
        """Black is white."""

        name = "invert-in-a-test"
        title = "Black is white"

        def apply(self, images):
            return type(Crop().apply(images))(255 - images)

    prepared = prepare(load(SOURCE), DataConfig(steps=["invert-in-a-test"]))
    assert np.array_equal(prepared.train.pixels, 255 - prepare(load(SOURCE)).train.pixels)
