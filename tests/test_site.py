"""Where a package comes from: told where sites differ, and not where they are alike."""

import numpy as np
import pytest

import medistill
from medistill.audits.audit import NotMeasuredError, audits, populations
from medistill.data.load import load
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.preprocess import prepare
from medistill.keys import Key
from medistill.package.package import read_package

SMALL = {"method": {"name": "dm", "iterations": 100, "networks": 6, "filters": 16, "real_batch": 40}}


def of_two_sites(path, other, named=True):
    """Training images of site a, test images of both sites; ``other`` is the scanner that took those of b."""
    ours, theirs = (
        make_phantom(Phantom(classes=2, images=300, size=24, site=site, seed=seed))
        for site, seed in (("a", 0), (other, 1))
    )
    images = {"train": [ours.train], "test": [ours.splits["test"], theirs.train]}
    content = {}
    for split, parts in images.items():
        content[f"{split}_images"] = np.concatenate([part.images[:, 0] for part in parts])
        content[f"{split}_labels"] = np.concatenate([part.targets.argmax(axis=1) for part in parts])
        if named:
            content[f"{split}_sites"] = np.concatenate(
                [np.full(len(part.images), name) for part, name in zip(parts, ("anna", "zuyd"), strict=False)]
            )
    np.savez(path, **content)
    return path


def finding(source, folder, method="dm", **options):
    medistill.distill(source, out=folder / "p", method=method, ipc=20, settings=SMALL if method == "dm" else None)
    prepared = prepare(load(source))
    package = read_package(folder / "p")
    return audits()["site"](iterations=100, **options).run(package, *populations(prepared), Key(0))


@pytest.mark.parametrize("method", ["random", "dm"])
def test_another_scanner_is_told(method, tmp_path):
    """Surely from real images, better than by chance from distilled ones."""
    found = finding(of_two_sites(tmp_path / "two.npz", "b"), tmp_path, method)
    assert (found.details["sites"], found.details["other_sites"]) == (1, 1)
    assert found.verdict == "warn" or method == "dm"
    assert found.details["unseen_images_told"] > (0.75 if method == "random" else 0.55)
    assert found.value > (0.75 if method == "random" else 0.55)
    assert "anna" not in found.model_dump_json() and "zuyd" not in found.model_dump_json()


@pytest.mark.parametrize("method", ["random", "dm"])
def test_a_site_with_the_same_scanner_is_not_told(method, tmp_path):
    found = finding(of_two_sites(tmp_path / "one.npz", "a"), tmp_path, method)
    assert 0.35 < found.details["unseen_images_told"] < 0.65
    assert found.verdict == "pass"


@pytest.mark.parametrize(
    ("source", "reason"), [("unnamed", "do not say which site"), ("all", "every site that the data name took part")]
)
def test_without_other_sites_nothing_is_measured(source, reason, tmp_path):
    path = of_two_sites(tmp_path / "s.npz", "c", named=source != "unnamed")
    if source == "all":
        content = dict(np.load(path))
        content["train_sites"] = np.resize(["anna", "zuyd"], len(content["train_sites"]))
        np.savez(path, **content)
    with pytest.raises(NotMeasuredError, match=reason):
        finding(path, tmp_path)
