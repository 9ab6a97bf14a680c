"""Real data from end to end. The fast ones show that it runs, the slow ones what it is worth.

The bounds of the slow ones are those the project promises of its default on two CPU cores; see
docs/results/methods.md for the figures last measured. Two networks of each arm tell whether they hold.
"""

import pytest

import medistill
from conftest import SMALL_DM, TINY
from medistill.config import EvaluateConfig
from medistill.files import CACHE_VARIABLE


@pytest.mark.parametrize(
    ("name", "task", "images"),
    [
        ("breastmnist.npz", "binary", 2),
        ("pneumoniamnist.npz", "binary", 2),
        ("breastmnist_64.npz", "binary", 2),
        ("adrenalmnist3d_28.npz", "binary", 2),
        ("fundus_dr3_28.npz", "ordinal", 3),
        ("odir5k_28.npz", "multi-label", 8),
    ],
)
def test_real_data_runs_from_end_to_end(name, task, images, real, tmp_path):
    # An order of classes is never guessed; all else follows from the labels.
    settings = {**SMALL_DM, "data": {"task": task}} if task == "ordinal" else SMALL_DM
    made = medistill.distill(real(name), out=tmp_path / "p.zip", ipc=1, settings=settings)
    assert made["images"] == images
    result = medistill.evaluate(tmp_path / "p.zip", on=real(name), config=TINY)
    assert result["data"]["same_as_distilled"] and result["task"] == task
    assert medistill.verify(tmp_path / "p.zip")["classes"] == result["class_names"]


def test_a_package_of_one_size_trains_for_another(real, tmp_path):
    medistill.distill(real("breastmnist_64.npz"), out=tmp_path / "p", ipc=1, settings=SMALL_DM)
    result = medistill.train(tmp_path / "p", on=real("breastmnist.npz"), config=TINY)
    assert result["test_images"] == 156


TWO_EACH = EvaluateConfig(repeats=2, random_draws=2)

PROMISED = {
    # images at most (share), AUROC of full training at least; of two workers one begins with the first two
    "bloodcells_28.npz": (0.01, 0.99),
    "breastmnist.npz": (0.05, 0.88),
    "pneumoniamnist.npz": (0.01, 0.94),
}


@pytest.fixture
def one_cache(tmp_path_factory, worker_id, monkeypatch):
    """What one slow test trained on a set, the next finds, whichever worker it runs in."""
    own = tmp_path_factory.getbasetemp()  # a worker's lies in that of all
    folder = own if worker_id == "master" else own.parent
    monkeypatch.setenv(CACHE_VARIABLE, str(folder / "cache-of-slow-tests"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROMISED)
def test_ten_images_per_class_recover_nine_tenths(name, real, one_cache, tmp_path):
    share, auroc = PROMISED[name]
    medistill.distill(real(name), out=tmp_path / "p", ipc=10)
    result = medistill.evaluate(tmp_path / "p", on=real(name), config=TWO_EACH)
    assert result["compression"]["images"] <= share
    assert result["recovery"]["balanced_accuracy"] >= 0.90
    assert result["recovery"]["auroc"] >= 0.90
    assert result["arms"]["full"]["auroc"]["mean"] >= auroc


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_image_per_class_beats_a_random_one(real, one_cache, tmp_path):
    medistill.distill(real("breastmnist.npz"), out=tmp_path / "p", ipc=1)
    gain = medistill.evaluate(tmp_path / "p", on=real("breastmnist.npz"), config=TWO_EACH)["gain_over_random"]
    assert gain["balanced_accuracy"]["ci95"][0] > 0
