"""What tells the class beside the disease: found where it was planted, and only there."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import medistill
from medistill.config import DataConfig, EvaluateConfig
from medistill.data.dataset import Dataset
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.shortcuts import shortcuts
from medistill.errors import ConfigError


def phantom(**settings):
    return make_phantom(Phantom(**{"classes": 3, "images": 300, **settings}))


def with_train(dataset, **changes):
    return Dataset({**dataset.splits, "train": replace(dataset.train, **changes)}, dataset.description)


def with_marked_border(dataset, share=1.0):
    """A bright line at the upper edge of images of the second class, or of a share of them."""
    images = dataset.train.images.copy()
    rows = np.flatnonzero(dataset.train.targets[:, 1])
    images[rows[: round(share * len(rows))], ..., 0, :] = 255
    return with_train(dataset, images=images)


def told(dataset):
    return {one.cue: one for one in shortcuts(dataset)}


@pytest.mark.parametrize("settings", [{}, {"task": "grades"}, {"colour": True}, {"depth": 16, "images": 60}])
def test_images_without_a_shortcut_have_none(settings):
    assert not any(one.strong for one in shortcuts(phantom(**settings)))


def test_a_marked_border_is_a_shortcut_and_measured():
    found = told(with_marked_border(phantom(classes=2)))["border"]
    assert found.strong and found.balanced_accuracy > 0.95 and found.chance == 0.5
    assert found.low <= found.balanced_accuracy
    some = told(with_marked_border(phantom(classes=2), share=0.5))["border"]
    assert found.balanced_accuracy > some.balanced_accuracy > 0.6


def test_a_shortcut_of_one_class_among_several_names_it():
    dataset = with_marked_border(phantom(classes=4))
    assert told(dataset)["border"].strong and told(dataset)["border"].target == dataset.task.class_names[1]


def test_of_several_findings_the_one_that_is_told_is_named():
    dataset = with_marked_border(phantom(task="findings"))
    found = told(dataset)["border"]
    assert found.strong and found.target == dataset.task.class_names[1]


def test_a_site_of_one_class_and_sizes_of_one_class_are_shortcuts():
    dataset = phantom()
    numbers = dataset.task.labels(dataset.train.targets)
    mixed = np.random.default_rng(0).integers(0, 2, len(numbers))
    for way, strong in ((numbers, True), (mixed, False)):
        sites, sizes = np.array([f"site {n}" for n in way]), np.stack([500 + 12 * way, 512 + 0 * way], 1)
        found = told(with_train(dataset, sites=sites, sizes=sizes))
        assert (found["site"].strong, found["size"].strong) == (strong, strong)
        assert not found["border"].strong


def test_patients_are_not_split_between_fitting_and_testing():
    """Each patient has a border and a class of its own, so that only who knows the patient knows the class."""
    rng, dataset = np.random.default_rng(0), phantom(classes=2)
    patients = rng.integers(0, 30, len(dataset.train))
    labels = np.arange(30)[patients] % 2
    images = dataset.train.images.copy()
    images[:, :, 0, :] = rng.integers(0, 256, (30, 1, images.shape[-1]))[patients]
    own = {"images": images, "targets": dataset.task.targets(labels)}
    known = told(with_train(dataset, **own, patients=np.array([str(p) for p in patients])))["border"]
    unknown = told(with_train(dataset, **own, patients=None))["border"]
    assert unknown.balanced_accuracy > known.balanced_accuracy + 0.2 and not known.strong


def test_large_images_are_not_copied():
    """All are one image in memory, so what is measured was made of them."""
    dataset = phantom(classes=2)
    images = np.broadcast_to(np.eye(512, dtype=np.uint8), (len(dataset.train), 1, 512, 512))
    tracemalloc.start()
    shortcuts(with_train(dataset, images=images))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes


def test_too_few_images_say_nothing():
    assert shortcuts(phantom(classes=2, images=8)) == []


def of_sites(path, **more):
    dataset = phantom()
    rng = np.random.default_rng(0)
    content = dict(more)
    for name, part in dataset.splits.items():
        content[f"{name}_images"] = part.images[:, 0]
        content[f"{name}_labels"] = dataset.task.labels(part.targets)
        content[f"{name}_sites"] = np.array(["north", "south"])[rng.integers(0, 2, len(part))]
    np.savez(path, **content)
    return path


def test_a_site_is_held_out(tmp_path):
    source = of_sites(tmp_path / "sites.npz")
    whole, held = load(source), load(source, DataConfig(test_site="south"))
    assert set(held.splits["test"].sites) == {"south"}
    assert set(held.train.sites) == set(held.splits["val"].sites) == {"north"}
    south = sum(int((part.sites == "south").sum()) for part in whole.splits.values())
    left = int((whole.splits["test"].sites == "north").sum())
    assert len(held.splits["test"]) == south
    assert sum(map(len, held.splits.values())) == sum(map(len, whole.splits.values())) - left
    assert any(f"{left} of other sites were left out" in note for note in held.description.notes)
    everyone = np.concatenate([part.images for part in whole.splits.values()])
    sites = np.concatenate([part.sites for part in whole.splits.values()])
    assert np.array_equal(held.splits["test"].images, everyone[sites == "south"])


def test_a_site_that_is_not_there_is_named_with_those_that_are(tmp_path):
    source = of_sites(tmp_path / "sites.npz")
    with pytest.raises(ConfigError, match="'west'; allowed: north, south"):
        load(source, DataConfig(test_site="west"))
    with pytest.raises(ConfigError, match="not every image names its site"):
        load("phantom:images=60", DataConfig(test_site="a"))


def test_a_package_of_a_held_out_site_is_evaluated_on_it(tmp_path):
    source = of_sites(tmp_path / "sites.npz")
    made = medistill.distill(
        source, out=tmp_path / "p", method="random", ipc=3, settings={"data": {"test_site": "south"}}
    )
    tested = medistill.evaluate(
        made["package"], on=source,
        config=EvaluateConfig(repeats=1, random_draws=2, recipe={"max_steps": 30, "min_steps": 20, "width": 8}),
    )  # fmt: skip
    held = load(source, DataConfig(test_site="south"))
    assert tested["test_images"] == len(held.splits["test"]) and tested["data"]["same_as_distilled"]
