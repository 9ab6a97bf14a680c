"""Features of a data set: they see no image that they must not see, are kept, and a study renews them alone."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import medistill
from medistill.data.dataset import Dataset, Description, Split
from medistill.data.phantom import Phantom, make_phantom
from medistill.data.preprocess import TensorSplit, prepare
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.duration import effort
from medistill.evaluation.jobs import Job
from medistill.prediction import features as features_module
from medistill.prediction.features import ALL, CHOSEN, DRAW, LONG, SHORT, PackageSpec, features, features_seconds
from medistill.records.store import Store
from medistill.study import work
from medistill.tasks.task import make_task
from studies import SMALL, in_this_process, write


@dataclass
class Trained:
    """What networks of features are trained on and asked about; none is trained.

    Networks of coresets answer right but for images that they were trained on, the others say that all are of the
    first class.
    """

    jobs: list[Job] = field(default_factory=list)
    splits: dict[str, TensorSplit] = field(default_factory=dict)

    def __call__(self, jobs, splits, news):
        self.jobs += jobs
        self.splits |= splits
        return {job: TrainedRun(self.answer(job), np.zeros((0, 3))) for job in jobs}

    def answer(self, job):
        asked, own = self.splits[job.test], images_of(self.splits[job.train])
        first = np.eye(job.outputs)[np.zeros(len(asked), dtype=int)]
        if job.index != CHOSEN:
            return first
        known = np.array([image.tobytes() in own for image in asked.pixels])
        return np.where(known[:, None], np.roll(asked.targets, 1, axis=1), asked.targets).astype(float)

    @property
    def held(self):
        """The images asked about."""
        (digest,) = {job.test for job in self.jobs}
        return self.splits[digest]

    @property
    def rest(self):
        """All others."""
        return next(self.splits[job.train] for job in self.jobs if job.index == ALL)

    def on(self, index):
        """Training images of the networks of that number."""
        return [self.splits[job.train] for job in self.jobs if job.index == index]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A record of what would be trained, with a cache that knows nothing."""
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "nothing known"))
    found = Trained()
    monkeypatch.setattr(features_module, "run_cached", found)
    return found


def images_of(split):
    return {image.tobytes() for image in split.pixels}


def numbered_images(labels, patients=None):
    """Training images whose every pixel is their number."""
    task = make_task("multi-class", ("a", "b", "c"))
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 16, 16), dtype=np.uint8)
    train = Split(pixels, task.targets(np.asarray(labels)), patients)
    return prepare(Dataset({"train": train}, Description("numbers", task)))


def numbers(split):
    return split.pixels[:, 0, 0, 0].tolist()


def of_random(prepared, ipc):
    package = PackageSpec.of({"method": {"name": "random"}, "ipc": ipc})
    return features(prepared, {"random": package})["random"]


def test_features_come_from_training_images_alone(short, tmp_path, monkeypatch):
    dataset = make_phantom(Phantom(classes=3, images=60, size=16))
    first = of_random(prepare(dataset), 2)
    rng = np.random.default_rng(0)
    other = {
        name: split if name == "train" else Split(255 - split.images, rng.permutation(split.targets), split.patients)
        for name, split in dataset.splits.items()
    }
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "empty"))  # else what was found above is found again
    assert of_random(prepare(Dataset(other, dataset.description)), 2) == first
    assert all(math.isfinite(v) for v in first.values())
    assert first["classes"] == 3 and first["images"] == 6 and first["share"] == 0.1
    assert all(0 <= first[f"{kind}.auroc"] <= 1 for kind in ("random", "all", "chosen"))


def test_time_is_counted_from_the_images_that_go_through_networks_and_none_where_all_is_kept(trained, monkeypatch):
    class Pace:
        training, asking = 0.01, 0.1

        def __init__(self, *_):
            pass

        def spread(self, images, asked):
            return sum(n * self.training + asked * self.asking for n in images)

    monkeypatch.setattr(features_module, "Pace", Pace)
    prepared = prepare(make_phantom(Phantom(classes=3, images=60, size=16)))
    wanted = {"random": PackageSpec.of({"method": {"name": "random"}, "ipc": 2})}
    told = features_seconds(prepared, wanted)
    of_random(prepared, 2)
    images = sum(effort(LONG if job.index == ALL else SHORT, len(trained.splits[job.train])) for job in trained.jobs)
    assert told == pytest.approx(images * 0.01 + len(trained.jobs) * 15 * 0.1, rel=0.1)
    assert features_seconds(prepared, wanted) == 0


def test_nobody_is_asked_about_patients_who_are_known(trained):
    rng = np.random.default_rng(0)
    patients = np.array([f"p{n}" for n in rng.integers(0, 30, 200)])
    labels = rng.integers(0, 3, 200)
    of_random(numbered_images(labels, patients), 2)
    held, rest = trained.held, trained.rest
    asked, known = ({patients[n] for n in numbers(part)} for part in (held, rest))
    assert not asked & known and len(held) + len(rest) == 200
    every = np.bincount(labels)
    assert all(n >= 1 for n in held.targets.sum(axis=0)) and (held.targets.sum(axis=0) <= every // 2).all()
    drawn = [each for index in range(DRAW, CHOSEN) for each in trained.on(index)]
    assert drawn and all(images_of(each) < images_of(rest) for each in drawn)
    trained.jobs.clear()
    of_random(numbered_images(labels), 2)
    assert len({patients[n] for n in numbers(trained.held)}) > len(asked)


@pytest.mark.parametrize("method", ["random", "herding", "k-means"])
def test_a_coreset_is_looked_at_as_it_will_be(method, trained, tmp_path):
    medistill.distill(SMALL, out=tmp_path / "p", method=method, ipc=1, seed=3)
    package = medistill.read_package(tmp_path / "p")
    wanted = PackageSpec.of({"method": {"name": method}, "ipc": 1, "seed": 3})
    features(prepare(medistill.load(SMALL)), {"": wanted})
    (chosen,) = trained.on(CHOSEN)
    assert np.array_equal(chosen.pixels, package.pixels) and np.array_equal(chosen.targets, package.targets)


def test_images_that_a_network_was_trained_on_are_not_asked_about(trained, tmp_path):
    """Where a coreset leaves less than half of a class to ask about, it is not looked at."""
    source, size = "phantom:classes=2,images=24,size=16", 3
    wanted = {seed: {"method": {"name": "random"}, "ipc": size, "seed": seed} for seed in range(16)}
    prepared = prepare(medistill.load(source))
    found = features(prepared, {str(seed): PackageSpec.of(each) for seed, each in wanted.items()})
    labels = trained.held.targets.argmax(axis=1)
    asked_about_some, outcomes = False, set()
    for seed in wanted:
        medistill.distill(source, out=tmp_path / str(seed), method="random", ipc=size, seed=seed)
        own = images_of(medistill.read_package(tmp_path / str(seed)))
        unseen = np.array([image.tobytes() not in own for image in trained.held.pixels])
        enough = all(unseen[labels == label].mean() >= 0.5 for label in (0, 1))
        # Right on every image that it may be asked about, else what random images reach.
        assert found[str(seed)]["chosen.balanced_accuracy"] == (1.0 if enough else 0.5)
        outcomes.add(enough)
        asked_about_some |= enough and not unseen.all()
    assert outcomes == {True, False} and asked_about_some


def test_only_few_images_of_a_coreset_are_looked_at(short, monkeypatch, tmp_path):
    """Of what is learned, stored smaller, labelled by teachers, or many, random images tell as much."""
    prepared = prepare(make_phantom(Phantom(classes=2, images=100, size=16)))
    own = {"method": {"name": "random"}, "ipc": 1}
    wanted = {
        "few": own, "another seed": {**own, "seed": 1}, "many": {**own, "ipc": 4}, "smaller": {**own, "factor": 2},
        "labelled": {**own, "labels": {"teachers": 1}}, "learned": {"method": {"name": "dm"}, "ipc": 1},
    }  # fmt: skip
    found = features(prepared, {name: PackageSpec.of(each) for name, each in wanted.items()})
    differ = {n for n, f in found.items() if f["chosen.auroc"] != f["random.auroc"]}
    assert differ == {"few", "another seed"} and len({found[n]["chosen.auroc"] for n in differ}) == 2
    assert all(f["all.auroc"] == found["few"]["all.auroc"] for f in found.values())
    monkeypatch.setattr(features_module, "MOST_IMAGES", 99)
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "empty"))  # else what was found above is found again
    (many,) = features(prepared, {"": PackageSpec.of(own)}).values()
    assert many["chosen.auroc"] == many["random.auroc"]


def test_features_are_kept(short, monkeypatch):
    prepared = prepare(make_phantom(Phantom(classes=2, images=40, size=16)))
    first = of_random(prepared, 1)
    monkeypatch.setattr(features_module, "run_cached", lambda *_: pytest.fail("trained again"))
    assert of_random(prepared, 1) == first


@pytest.mark.parametrize("images", [4, 7, 30])
def test_features_of_few_images(short, images):
    """Also of a package of all images, which leaves none to ask about."""
    prepared = prepare(make_phantom(Phantom(classes=2, images=images, size=16)))
    assert all(math.isfinite(v) for v in of_random(prepared, max(prepared.real_per_stratum)).values())


def test_a_class_of_one_image_is_not_asked_about(trained):
    of_random(numbered_images([0, 0, 1, 2]), 1)
    assert trained.held.targets.sum(axis=0).tolist() == [1, 0, 0] and len(trained.held) + len(trained.rest) == 4


def test_features_of_an_earlier_version_are_renewed_and_nothing_is_measured_again(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    file = write(tmp_path, data=[{"source": SMALL, "name": "a"}], features=True)
    medistill.study_run(file)
    with Store(tmp_path / "study.db", write=True) as store:
        before = store.runs()
        store.renew(before[0].identity, {"features": {"classes": 3.0}, "features_version": 0})
    monkeypatch.setattr("medistill.study.measure.distilled", lambda _run: pytest.fail("measured again"))
    result = medistill.study_run(file)
    assert (result["runs"], result["done"], result["ran"]) == (2, 2, 0)
    with Store(tmp_path / "study.db") as store:
        assert store.runs() == [replace(r, asked=a.asked) for r, a in zip(before, store.runs(), strict=True)]


def test_features_that_were_not_wanted_can_be_had_later(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    data = [{"source": SMALL, "name": "a"}]
    medistill.study_run(write(tmp_path, data=data, methods=["random"]))
    with Store(tmp_path / "study.db") as store:
        assert store.runs()[0].result["features"] is None
    assert medistill.study_run(write(tmp_path, data=data, methods=["random"], features=True))["ran"] == 0
    with Store(tmp_path / "study.db") as store:
        assert store.runs()[0].result["features"]["classes"] == 3


def test_what_a_cache_held_without_features_gets_them_at_once(tmp_path, monkeypatch):
    """A result from the cache may have been measured for a study that wanted none."""
    in_this_process(monkeypatch)
    whole = work.perform

    def without(specification):
        found = whole(specification)
        return found if specification["kind"] == "features" else {**found, "features": None, "features_version": None}

    monkeypatch.setattr(work, "perform", without)
    result = medistill.study_run(write(tmp_path, features=True))
    assert result["ran"] == result["runs"] == result["done"]
    with Store(tmp_path / "study.db") as store:
        assert all(run.result["features"] for run in store.runs())
