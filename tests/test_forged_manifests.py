"""Manifests from strangers: every field is what it should be, or the package is refused in one line."""

import json

import numpy as np
import pytest

from forging import refused, sealed, version_1
from medistill.package.container import read_files, write_files
from medistill.package.package import package_files, read_package

HUGE = 10**30
BAD = (None, [], {}, "\ud800", float("nan"), 1e999, HUGE, -HUGE, [[]], True)

CONFIGURATION = ("provenance", "configuration")
RECIPE = (*CONFIGURATION, "labels", "recipe")

FREE = (("method", "settings"), ("method", "optimiser"), ("audits", 0, "details"), CONFIGURATION)
"""What lies below may be anything, but for what is checked."""

CHECKED = (("data", "split_seed"), ("data", "task"), ("factor",), ("labels",), ("data",))
"""Of the configuration, with everything below but the settings of data."""

ALLOWED = {
    ("audits",): [[]],
    ("audits", 0, "value"): [None, HUGE, -HUGE],
    ("image", "spacing"): [[]],  # see nonsense
    ("method", "optimiser"): [None],
    ("method", "steps"): [None],
    ("privacy", "guarantee"): [{}],
    ("privacy", "queries"): [[]],
    ("provenance", "data", "notes"): [[]],
}
"""Values of another kind that a field may have."""

GENUINE = (
    "format", "format_version", "task", "image", "images", "method", "start", "privacy", "audits", "evaluation",
    "provenance", "files",
)  # fmt: skip


def _places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))


def _mutations(text):
    """Manifests with one field of another kind each: its place, the value, the manifest."""
    for path in _places(json.loads(text)):
        if not path or path[0] == "package_id" or (path[0] == "files" and len(path) > 1):
            continue
        for bad in BAD:
            manifest = json.loads(text)
            place = manifest
            for part in path[:-1]:
                place = place[part]
            if type(place[path[-1]]) is type(bad) and not isinstance(bad, list):
                continue
            place[path[-1]] = bad
            yield path, bad, manifest


def _is_free(path, bad):
    # What is no JSON is refused wherever it stands.
    if isinstance(bad, float) or bad == "\ud800":
        return False
    if any(bad == value and type(bad) is type(value) for value in ALLOWED.get(path, [])):
        return True
    if path[:-1] == RECIPE and bad is True:  # counts as one
        return True
    if path[:2] == CONFIGURATION and (path[2:] in CHECKED or path[2:3] == ("labels",)):
        return False
    return any(path[: len(free)] == free and len(path) > len(free) for free in FREE)


def test_every_field_of_the_wrong_kind_is_refused(package, tmp_path):
    files = read_files(package)
    tried = 0
    for path, bad, manifest in _mutations(files["manifest.json"]):
        if not _is_free(path, bad):
            refused(tmp_path, sealed(files, manifest), (path, bad))
            tried += 1
    assert tried > 700
    refused(tmp_path, sealed(files, {**json.loads(files["manifest.json"]), "extra": 1}))


@pytest.mark.parametrize("key", GENUINE)
def test_no_field_may_be_missing(package, tmp_path, key):
    files = read_files(package)
    manifest = json.loads(files["manifest.json"])
    assert set(manifest) == {*GENUINE, "package_id"}
    del manifest[key]
    refused(tmp_path, sealed(files, manifest))


REQUIRED = {
    "task": ("kind", "class_names"),
    "image": ("channels", "shape", "stored_shape", "dtype", "window", "mean", "std", "flips"),
    "images": ("count", "per_stratum", "folders", "labels"),
    "method": ("name", "title", "kind", "version", "bibtex"),
    "privacy": ("contains_real_images", "starts_from_real_images"),
    "provenance": ("data", "configuration", "seed", "medistill"),
}


@pytest.mark.parametrize("section", REQUIRED)
def test_no_section_may_lack_a_field(package, tmp_path, section):
    files = read_files(package)
    for key in REQUIRED[section]:
        manifest = json.loads(files["manifest.json"])
        del manifest[section][key]
        refused(tmp_path, sealed(files, manifest), (section, key))


NONSENSE = {
    "flips": lambda m: m["image"].update(flips="sideways"),
    "a class more": lambda m: m["task"]["class_names"].append("more"),
    "a class twice": lambda m: m["task"].update(class_names=[m["task"]["class_names"][0]] * 3),
    "a class that colours the terminal": lambda m: m["task"]["class_names"].__setitem__(0, "a\x1b[31m"),
    "an unknown task": lambda m: m["task"].update(kind="triage"),
    "binary of three": lambda m: m["task"].update(kind="binary"),
    "findings without the stratum of none": lambda m: m["task"].update(kind="multi-label"),
    "no deviation": lambda m: m["image"].update(std=[0.0]),
    "hardly a deviation": lambda m: m["image"].update(std=[1e-300]),
    "two means": lambda m: m["image"].update(mean=[0.5, 0.5]),
    "a mean outside": lambda m: m["image"].update(mean=[1.5]),
    "sides of 60000": lambda m: m["image"].update(shape=[60000, 60000], stored_shape=[60000, 60000]),
    "other sides": lambda m: m["image"].update(shape=[4096, 4096], stored_shape=[4096, 4096]),
    "seen at other sides": lambda m: m["image"].update(shape=[4096, 4096]),
    "stored at other sides": lambda m: m["image"].update(stored_shape=[8, 8]),
    "volumes": lambda m: m["image"].update(shape=[16, 16, 16], stored_shape=[16, 16, 16]),
    "volumes stored as pictures": lambda m: m["image"].update(shape=[16, 16, 16]),
    "colour": lambda m: m["image"].update(channels=3),
    "colour with statistics": lambda m: m["image"].update(channels=3, mean=[0.5] * 3, std=[0.5] * 3),
    "two channels": lambda m: m["image"].update(channels=2, mean=[0.5] * 2, std=[0.5] * 2),
    "a window upside down": lambda m: m["image"].update(window=[255.0, 0.0]),
    "a window beyond": lambda m: m["image"].update(window=[0.0, 1e300]),
    "no spacing at all": lambda m: m["image"].update(spacing=[]),
    "spacing of volumes": lambda m: m["image"].update(spacing=[1.0, 1.0, 1.0]),
    "spacing of zero": lambda m: m["image"].update(spacing=[0.0, 1.0]),
    "more images": lambda m: m["images"].update(count=10**6),
    "images of another class": lambda m: m["images"].update(per_stratum=[3, 2, 1]),
    "folders outside": lambda m: m["images"].update(folders=["../a", "b", "c"]),
    "one folder": lambda m: m["images"].update(folders=["0_a"] * 3),
    "soft labels": lambda m: m["images"].update(labels="soft"),
    "originals of a class more": lambda m: m["provenance"]["data"].update(per_stratum=[1] * 4),
    "a seed of a half": lambda m: m["provenance"].update(seed=0.5),
    "a factor": lambda m: m["provenance"]["configuration"].update(factor=2),
    "a width below zero": lambda m: m["provenance"]["configuration"]["labels"]["recipe"].update(width=-4),
    "a temperature of zero": lambda m: m["provenance"]["configuration"]["labels"].update(temperature=0),
    "another kind of method": lambda m: m["method"].update(kind="magic"),
    "steps below zero": lambda m: m["method"].update(steps=-1),
    "a start that colours the terminal": lambda m: m.update(start="a\x1b[31m"),
    "a real start that is not told": lambda m: m.update(start="real"),
    "a real start told of noise": lambda m: m["privacy"].update(starts_from_real_images=True),
    "chosen images that begin as noise": lambda m: (
        m["method"].update(kind="coreset"),
        m["privacy"].update(contains_real_images=True),
    ),
    "a guarantee": lambda m: m["privacy"].update(guarantee={"epsilon": 0.1}),
    "another verdict": lambda m: m["audits"][0].update(verdict="perfect"),
    "real images below zero": lambda m: m["audits"][0].update(real_images=-1),
    "half an interval": lambda m: m["audits"][0].update(interval=[0.5]),
    "a finding's field more": lambda m: m["audits"][0].update(certified=True),
    "an evaluation without arms": lambda m: m.update(evaluation={"task": "multi-class"}),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_consistent_nonsense_is_refused(package, tmp_path, kind):
    files = read_files(package)
    manifest = json.loads(files["manifest.json"])
    NONSENSE[kind](manifest)
    refused(tmp_path, sealed(files, manifest))


@pytest.fixture
def old(package):
    """The package's files with a manifest of version 1."""
    files = read_files(package)
    return sealed(files, version_1(json.loads(files["manifest.json"])))


def test_version_1_is_read_and_written_as_version_2(package, old, tmp_path):
    write_files(tmp_path / "old", old)
    found, new = read_package(tmp_path / "old"), read_package(package)
    assert np.array_equal(found.pixels, new.pixels) and np.array_equal(found.targets, new.targets)
    assert found.task == new.task and found.preprocessing == new.preprocessing
    assert found.manifest.method.settings | {"stem": None} == new.manifest.method.settings, "there was no choice"
    optimiser = new.manifest.method.optimiser
    assert optimiser is not None and found.manifest.method.optimiser == optimiser | {"schedule": "constant"}
    assert found.manifest.label_config == new.manifest.label_config
    assert found.manifest.provenance.data == new.manifest.provenance.data
    assert json.loads(package_files(found)["manifest.json"])["format_version"] == 2


OLD_FREE = {"configuration", "method", "evaluation"}
OLD_CHECKED = {
    ("method",), ("method", "name"), ("method", "title"), ("method", "bibtex"), ("method", "version"),
    ("configuration",), ("configuration", "data"), ("configuration", "data", "split_seed"),
    ("configuration", "factor"), ("configuration", "labels"), ("configuration", "labels", "recipe"),
}  # fmt: skip


def test_every_field_of_version_1_of_the_wrong_kind_is_refused(old, tmp_path):
    tried = 0
    for path, bad, manifest in _mutations(old["manifest.json"]):
        checked = path[0] not in OLD_FREE or path in OLD_CHECKED or isinstance(bad, float) or bad == "\ud800"
        if checked and (path, bad) != (("data", "notes"), []):
            refused(tmp_path, sealed(old, manifest), (path, bad))
            tried += 1
    assert tried > 400


@pytest.mark.parametrize("key", ["extra", "audits", "task", "privacy"])
def test_version_1_has_no_other_fields(old, tmp_path, key):
    refused(tmp_path, sealed(old, {**json.loads(old["manifest.json"]), key: []}), key)


ODD = [[], {"a": 1}, "text", 3, {"arms": 3, "transfer": {"mlp": []}, "details": {"full": 1}}, {"recipe": []}]


@pytest.mark.parametrize(
    "path", [("configuration", "method"), ("configuration", "labels", "recipe"), ("evaluation",)]
)
@pytest.mark.parametrize("bad", ODD)
def test_what_version_1_left_open_never_gives_a_traceback(old, tmp_path, path, bad):
    manifest = json.loads(old["manifest.json"])
    place = manifest
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = bad
    if path == ("configuration", "method") and isinstance(bad, dict):  # any settings, which are kept
        write_files(tmp_path / "odd", sealed(old, manifest))
        kept = read_package(tmp_path / "odd").manifest.provenance.configuration
        assert kept.model_dump(mode="json")["method"] == bad
    else:
        refused(tmp_path, sealed(old, manifest), (path, bad))
