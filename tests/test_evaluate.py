"""The comparison: keys, caching, and that test labels choose nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

import medistill
from conftest import SMALL_DM, TINY, TINY_SETS, npz_arrays
from medistill.commands import train as train_command
from medistill.config import Recipe
from medistill.data.align import align
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.load import load
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.errors import DataError
from medistill.evaluation import arms, jobs, workers
from medistill.files import CACHE_VARIABLE
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.training import one_cycle, predict_probabilities, steps_for, train_network
from medistill.package.package import read_package
from medistill.tasks.task import make_task

SOURCE = "phantom:classes=3,images=36,size=16"
TINY_OPTIONS = [part for setting in TINY_SETS for part in ("--set", setting)]


def test_result_has_the_promised_keys(package):
    result = medistill.evaluate(package, on=SOURCE, config=TINY)
    for arm in ("distilled", "random", "full", "full_balanced"):
        for metric in ("accuracy", "balanced_accuracy", "auroc", "f1_macro"):
            value = result["arms"][arm][metric]
            assert set(value) == {"mean", "std", "ci95"}
            low, high = value["ci95"]
            assert 0 <= low <= high <= 1
            assert 0 <= value["mean"] <= 1
        assert len(result["details"][arm]["recall"]) == 3
        assert 0 <= result["details"][arm]["calibration_error"] <= 1
    for metric in ("accuracy", "balanced_accuracy", "auroc", "f1_macro"):
        assert math.isfinite(result["recovery"][metric])
        gained = result["gain_over_random"][metric]
        assert gained["std"] is None and gained["ci95"][0] <= gained["mean"] <= gained["ci95"][1]
    assert result["compression"]["images"] == 6 / 36 and result["compression"]["bytes"] > 0
    assert (
        result["cost"]["seconds"] > 0 and result["cost"]["peak_memory_mb"] > 0 and "cpu" in result["cost"]["device"]
    )
    assert result["cost"]["distillation"]["seconds"] >= 0
    plain = result["arms"]["distilled"]["auroc"]["mean"] / result["arms"]["full"]["auroc"]["mean"]
    assert result["recovery"]["auroc"] == pytest.approx(plain)


def test_second_evaluation_trains_nothing_known_and_agrees(package, monkeypatch):
    first = medistill.evaluate(package, on=SOURCE, config=TINY)
    monkeypatch.setattr(jobs, "Training", lambda *_: pytest.fail("trained again"))
    again = medistill.evaluate(package, on=SOURCE, config=TINY)
    assert first["arms"] == again["arms"] and first["curves"] == again["curves"]


def test_it_says_how_long_it_takes_and_each_arm_when_it_is_done(package, capsys):
    config = TINY.model_copy(update={"seed": 5})
    result = medistill.evaluate(package, on=SOURCE, config=config, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("evaluating takes about ") for line in lines) == 1
    done = {line.split(":")[0]: line for line in lines if "balanced accuracy" in line}
    assert set(done) == set(result["arms"])
    for arm, line in done.items():
        assert f"{result['arms'][arm]['balanced_accuracy']['mean']:.3f}" in line
    medistill.evaluate(package, on=SOURCE, config=config, progress=True)
    again = capsys.readouterr().err
    assert "takes about" not in again and again.count("balanced accuracy") == len(done), "all of it is known"


def test_another_package_trains_only_its_own_arm(package, tmp_path, monkeypatch):
    medistill.evaluate(package, on=SOURCE, config=TINY)
    medistill.distill(SOURCE, out=tmp_path / "q", ipc=2, seed=1, settings=SMALL_DM)
    trained = []
    whole = jobs.Training
    monkeypatch.setattr(jobs, "Training", lambda *a: trained.append(len(a[1])) or whole(*a))
    medistill.evaluate(tmp_path / "q", on=SOURCE, config=TINY)
    assert trained == [6] * TINY.repeats


def test_recipe_is_part_of_the_identity(package, monkeypatch):
    medistill.evaluate(package, on=SOURCE, config=TINY)
    other = TINY.model_copy(update={"recipe": TINY.recipe.model_copy(update={"learning_rate": 2e-3})})
    trained = []
    whole = jobs.Training
    monkeypatch.setattr(jobs, "Training", lambda *a: trained.append(a[0]) or whole(*a))
    medistill.evaluate(package, on=SOURCE, config=other)
    assert len(trained) >= 3 * TINY.repeats


def test_permuted_test_labels_change_no_choice(tmp_path, monkeypatch):
    """Distilled images, trained networks and their predictions are the same whatever the test labels say."""
    dataset = make_phantom(Phantom(classes=3, images=36, size=16))
    test = dataset.splits["test"]
    shuffled = Split(test.images, np.random.default_rng(0).permutation(test.targets), test.patients)
    assert not np.array_equal(shuffled.targets, test.targets)
    arrays = {
        "a": npz_arrays(dataset),
        "b": npz_arrays(Dataset({**dataset.splits, "test": shuffled}, dataset.description)),
    }
    predictions = {}
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)  # networks end in the order in which they begin
    for name, content in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        medistill.distill(tmp_path / f"{name}.npz", out=tmp_path / name, ipc=2, settings=SMALL_DM)
        seen = predictions[name] = []
        monkeypatch.setattr(arms, "read_run", lambda _identity: None)
        monkeypatch.setattr(arms, "write_run", lambda _identity, run, seen=seen: seen.append(run.probabilities))
        medistill.evaluate(tmp_path / name, on=tmp_path / f"{name}.npz", config=TINY)
    assert np.array_equal(read_package(tmp_path / "a").pixels, read_package(tmp_path / "b").pixels)
    assert len(predictions["a"]) == len(predictions["b"]) > 0
    for first, second in zip(predictions["a"], predictions["b"], strict=True):
        assert np.array_equal(first, second)


def test_arms_are_what_they_say():
    prepared = prepare(make_phantom(Phantom(classes=3, images=90, size=16, imbalance=5)))
    data, task, sizes = prepared.train, prepared.task, prepared.real_per_stratum
    few = arms.subset(data, task, [4, 2, 100], Key(0))
    assert task.counts(few.targets) == [4, 2, sizes[2]]
    assert not np.array_equal(few.pixels, arms.subset(data, task, [4, 2, 100], Key(1)).pixels)
    again = arms.rebalanced(data, task, Key(0))
    assert task.counts(again.targets) == [30] * 3 and len(np.unique(again.pixels, axis=0)) < 90
    images = {image.tobytes(): tuple(target) for image, target in zip(data.pixels, data.targets, strict=True)}
    for arm in (few, again):
        assert all(images[p.tobytes()] == tuple(t) for p, t in zip(arm.pixels, arm.targets, strict=True))


def test_no_image_is_drawn_for_two_findings():
    prepared = prepare(make_phantom(Phantom(classes=3, images=90, size=16, task="findings")))
    task = prepared.task
    few = arms.subset(prepared.train, task, [6, 5, 4, 3], Key(0))
    assert len(few) == len(np.unique(few.pixels, axis=0)) == 18
    assert all(have >= asked for have, asked in zip(task.counts(few.targets), [6, 5, 4, 3], strict=True))


def test_steps_depend_on_the_number_of_images_alone():
    recipe = Recipe()
    assert steps_for(recipe, 20) == recipe.min_steps
    assert steps_for(recipe, 2 * recipe.batch_size) == recipe.min_steps + recipe.steps_per_doubling
    assert steps_for(recipe, 10**4) == int(recipe.epochs * 10**4 / recipe.batch_size)
    assert all(steps_for(recipe, n) <= steps_for(recipe, n + 1) for n in range(1, 3000))
    assert steps_for(recipe, 10**7) == recipe.max_steps
    assert all(0 <= one_cycle(i, n) <= 1 for n in (1, 2, 5, 50) for i in range(n))


def test_attached_results_repeat_and_reach_the_card(tmp_path):
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=2, settings=SMALL_DM, evaluate=True, evaluate_config=TINY)
    first = {f.name: f.read_bytes() for f in (tmp_path / "p").glob("*.*")}
    assert "random real images, same number" in first["README.md"].decode()
    assert read_package(tmp_path / "p").manifest.evaluation.arms["full"]
    medistill.distill(
        SOURCE, out=tmp_path / "p", ipc=2, settings=SMALL_DM, evaluate=True, evaluate_config=TINY, overwrite=True
    )
    assert first == {f.name: f.read_bytes() for f in (tmp_path / "p").glob("*.*")}


def test_recipient_trains_on_the_package_alone(package, tmp_path):
    result = medistill.train(
        package, on="phantom:classes=3,images=36,size=20,site=b", config=TINY, save=tmp_path / "n.safetensors"
    )
    assert result["test_images"] == 18 and (tmp_path / "n.safetensors").stat().st_size > 1000
    assert set(result["metrics"]) == {"accuracy", "balanced_accuracy", "auroc", "f1_macro"}


def test_recipient_gets_the_same_networks_on_any_number_of_cores(package, tmp_path, monkeypatch):
    config, found = TINY.model_copy(update={"repeats": 3}), []
    for cores in (1, 3):
        monkeypatch.setattr(train_command, "usable_cores", lambda cores=cores: cores)
        saved = tmp_path / f"{cores}.safetensors"
        found.append((medistill.train(package, on=SOURCE, config=config, save=saved)["metrics"], saved.read_bytes()))
    assert found[0] == found[1]
    with safe_open(saved, "pt") as read:
        assert read.metadata()["network"].startswith("ConvNet(") and len(list(read.keys())) > 5
    assert saved.read_bytes()[8:].startswith(b'{"__metadata__":{"network":'), "in an order that never changes"


def test_recipient_with_one_folder_tests_on_all_of_it(package, tmp_path, tiny):
    test = tiny.splits["test"]
    np.savez(tmp_path / "mine.npz", **_arrays(tiny, "test", as_="train"))
    result = medistill.train(package, on=tmp_path / "mine.npz", config=TINY)
    assert result["test_images"] == len(test) and "none for training" in result["notes"][-1]
    count = np.sum(result["confusion"], axis=1)
    assert result["recall"] == pytest.approx([result["confusion"][c][c] / count[c] for c in range(3)]), (
        "of all networks"
    )
    few = {name: array[:5] for name, array in _arrays(tiny, "test", as_="val").items()}
    np.savez(tmp_path / "more.npz", **_arrays(tiny, "test", as_="train"), **few)
    assert medistill.train(package, on=tmp_path / "more.npz", config=TINY)["test_images"] == len(test) + 5


def test_nobody_is_tested_on_what_was_distilled(tmp_path, tiny):
    np.savez(tmp_path / "mine.npz", **_arrays(tiny, "train"), **_arrays(tiny, "val"))
    medistill.distill(tmp_path / "mine.npz", out=tmp_path / "p", method="random", ipc=2)
    with pytest.raises(DataError, match=r"mine: has no test images, and the package was made from the others"):
        medistill.train(tmp_path / "p", on=tmp_path / "mine.npz", config=TINY)


def _arrays(dataset, split, as_=None):
    """The arrays of one split, named as those of another where that is asked for."""
    found = npz_arrays(dataset)
    return {f"{as_ or split}_{kind}": found[f"{split}_{kind}"] for kind in ("images", "labels")}


def test_classes_are_matched_by_name():
    images = np.zeros((4, 1, 16, 16), np.uint8)
    own, theirs = make_task("binary", ("Dog", "cat")), make_task("multi-class", ("cat", "cow", "dog"))
    dataset = Dataset({"train": Split(images, own.targets(np.array([0, 1, 1, 0])))}, Description("x", own))
    aligned, notes = align(dataset, theirs)
    assert aligned.task == theirs and theirs.labels(aligned.train.targets).tolist() == [2, 0, 0, 2]
    assert "no cow" in notes[0]
    with pytest.raises(DataError, match="class 'Dog' is not in the package"):
        align(dataset, make_task("binary", ("cat", "cow")))
    numbered = Dataset(dataset.splits, Description("x", make_task("binary", ("0", "1"))))
    assert "by number" in align(numbered, make_task("binary", ("cat", "dog")))[1][0]
    with pytest.raises(DataError, match="without names"):
        align(numbered, make_task("multi-class", ("a", "b", "c")))


def test_findings_are_matched_by_name_and_not_with_classes():
    images, found = np.zeros((3, 1, 16, 16), np.uint8), np.array([[1, 1], [0, 1], [0, 0]], np.uint8)
    own, theirs = make_task("multi-label", ("b", "A")), make_task("multi-label", ("a", "b", "c"))
    dataset = Dataset({"train": Split(images, found)}, Description("x", own))
    aligned, _ = align(dataset, theirs)
    assert aligned.train.targets.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(DataError, match=r"x: are a multi-label task.*a multi-class task, as the package is"):
        align(dataset, make_task("multi-class", ("a", "b", "c")))


def test_data_without_test_images_cannot_be_evaluated(package, tmp_path, tiny):
    arrays = {k: v for k, v in npz_arrays(tiny).items() if not k.startswith("test")}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match="has no test images"):
        medistill.evaluate(package, on=tmp_path / "x.npz", config=TINY)


def test_damaged_cache_entry_is_trained_again(package, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    first = medistill.evaluate(package, on=SOURCE, config=TINY)
    for file in (tmp_path / "runs").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert medistill.evaluate(package, on=SOURCE, config=TINY)["arms"] == first["arms"]


def test_one_random_image_per_class_is_below_three_quarters_of_full_training():
    """The phantom is difficult enough for comparisons to mean something."""
    prepared = prepare(load("phantom"))
    task, normalisation = prepared.task, replace(prepared.normalisation, flips="both")
    recipe = Recipe(width=32)  # as by default, but for its width
    network = ConvNet(1, (28, 28), 4, recipe.width)

    def score(data: TensorSplit, seed: int) -> float:
        parameters = train_network(network, data, task, normalisation, recipe, Key(seed))
        test = prepared.splits["test"]
        answers = predict_probabilities(network, parameters, test.pixels, task, normalisation)
        return task.scores(answers, test.targets)["balanced_accuracy"]

    full = score(prepared.train, 0)
    one = np.mean([score(arms.subset(prepared.train, task, [1] * 4, Key(i)), i) for i in range(2)])
    assert full > 0.75, full
    assert one < 0.75 * full, (one, full)


def test_workers_give_the_bytes_that_one_gives(package, monkeypatch):
    monkeypatch.setattr(arms, "read_run", lambda _identity: None)
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    here = medistill.evaluate(package, on=SOURCE, config=TINY)
    monkeypatch.setattr(workers, "usable_cores", lambda: 3)
    there = medistill.evaluate(package, on=SOURCE, config=TINY)
    assert here["arms"] == there["arms"] and here["curves"] == there["curves"] and here["details"] == there["details"]
