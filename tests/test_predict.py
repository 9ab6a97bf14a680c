"""Predict: learns from studies, advises by what it predicts, and refuses what no study measured."""

import json
from dataclasses import replace

import pytest
import yaml

import medistill
from medistill.data.preprocess import prepare
from medistill.errors import ConfigError
from medistill.prediction.examples import examples_of, shipped
from medistill.prediction.features import features
from medistill.prediction.indicator import QUANTITIES, Indicator, Prediction
from medistill.records.store import Store
from medistill.study.report import all_tables
from studies import EVALUATE, SMALL, in_this_process, law


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A real study on three scanners, measured with tiny networks."""
    folder = tmp_path_factory.mktemp("study")
    data = [{"source": f"{SMALL},site={site}", "name": f"scanner {site}", "group": site} for site in "abc"]
    methods = ["random", "herding"]
    data[0]["methods"] = [*methods, {"method": "herding", "name": "herding, smaller", "settings": {"factor": 2}}]
    study = {"name": "tiny", "data": data, "methods": methods, "ipc": [1, 2], "evaluate": EVALUATE}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        result = medistill.study_run(folder / "study.yaml")
    assert result["done"] == 14 and not result["errors"]
    return folder / "study.db"


@pytest.fixture(autouse=True)
def _nothing_shipped(monkeypatch, tmp_path):
    """What is learned from is what a test gives."""
    monkeypatch.setattr("medistill.commands.predict.shipped", lambda: [])


def predicted_of(recovery, gain, low):
    same = Prediction(0.5, 0.4, 0.6)
    return {
        "balanced_accuracy": same, "auroc": same, "recovery": Prediction(recovery, 0, 2),
        "gain": Prediction(gain, low, 1),
    }  # fmt: skip


@pytest.fixture
def told(monkeypatch):
    """What predict says where its indicator predicts this, and small networks reached so much on all images.

    Studies measured the methods as ``distil`` says, on data of that task.
    """

    def predict(predicted, every=0.9, source=SMALL, distil=None, task="multi-class"):
        known = [
            replace(e, method=m, distil={"method": {"name": m}, **(distil or {}).get(m, {})}, task=task)
            for e in law(groups=3, sizes=(1,))[::3]
            for m in predicted
        ]
        known = [replace(e, start=e.distil["method"].get("start", "real")) for e in known]
        monkeypatch.setattr("medistill.commands.predict.read_examples", lambda _: known)
        own = {"classes": 2.0, "all.balanced_accuracy": every}
        monkeypatch.setattr(
            "medistill.commands.predict.features", lambda _, packages, *__: dict.fromkeys(packages, own)
        )
        monkeypatch.setattr(Indicator, "predict", lambda self, features, method: predicted[method])
        return medistill.predict(source, ipc=1)

    return predict


@pytest.mark.parametrize(
    ("every", "recovery", "gain", "low", "code"),
    [
        (0.5, 0.99, 0.2, 0.1, "will not work"),
        (0.9, 0.5, 0.2, 0.1, "more images needed"),
        (0.9, 0.95, 0.1, 0.05, "worth it"),
        (0.9, 0.95, 0.01, -0.05, "random images will do"),
        (0.9, 0.95, 0.1, -0.05, "worth it"),
    ],
)
def test_what_is_advised_follows_from_what_is_predicted(told, every, recovery, gain, low, code):
    verdict = told({"dm": predicted_of(recovery, gain, low)}, every)["verdict"]
    assert verdict["code"] == code and verdict["method"] == "dm"
    assert ("also gained nothing" in verdict["words"]) == (code == "worth it" and low < 0)


def test_the_method_that_reaches_most_is_advised_on_and_random_images_are_none(told):
    better = {**predicted_of(0.95, 0.1, 0.05), "balanced_accuracy": Prediction(0.8, 0.7, 0.9)}
    best = {**predicted_of(1.0, 0.0, -0.1), "balanced_accuracy": Prediction(0.9, 0.8, 1.0)}
    of = {"random": best, "dm": predicted_of(0.92, 0.1, 0.05), "herding": better}
    assert told(of)["verdict"]["method"] == "herding"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (SMALL + ",task=findings", "its task is 'multi-label', which no study has measured; allowed: multi-class"),
        (
            SMALL + ",task=grades",
            "its task is 'ordinal', which no study has measured; allowed: multi-class; "
            "measure some with `medistill study run` and give its file with --db",
        ),
        ("phantom:classes=3,images=12,size=16,depth=16", "it holds volumes, which no study has measured"),
    ],
)
def test_data_that_no_study_measured_are_refused(told, cli, source, words):
    told({"dm": predicted_of(0.95, 0.1, 0.05)})
    status, out, err = cli("predict", source, "--ipc", 1)
    (error,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2 and out == "" and words in error


def test_grades_are_predicted_where_a_study_measured_grades(told):
    assert set(
        told({"dm": predicted_of(0.95, 0.1, 0.05)}, source=SMALL + ",task=grades", task="ordinal")["predictions"]
    ) == {"dm"}


def test_notes_name_learned_methods_that_were_measured_with_real_first_images(told):
    own = predicted_of(0.95, 0.1, 0.05)
    distil = {"dm": {"method": {"name": "dm", "start": "real"}}, "dc": {"method": {"name": "dc", "start": "noise"}}}
    (note,) = told(dict.fromkeys(("random", "herding", "dm", "dc"), own), distil=distil)["notes"]
    assert note.startswith("dm was measured with real first images") and "from noise expect somewhat less" in note
    distil["dc"]["method"]["start"] = "real"
    (note,) = told(dict.fromkeys(("random", "herding", "dm", "dc"), own), distil=distil)["notes"]
    assert note.startswith("dc, dm were measured with real first images")
    distil = {name: {"method": {"name": name, "start": "noise"}} for name in distil}
    assert told(dict.fromkeys(("random", "herding", "dm", "dc"), own), distil=distil)["notes"] == []


def test_the_shipped_study_predicts_and_says_what_it_was_measured_with(cli, monkeypatch, short):
    monkeypatch.setattr("medistill.commands.predict.shipped", shipped)
    status, out, _ = cli("predict", SMALL, "--ipc", 2, "--json")
    result = json.loads(out)
    assert status == 0 and set(result["predictions"]) == {"default", "dm quick", "herding", "k-means", "random"}
    assert result["learned_from"] == {"runs": 246, "data_sets": 19, "origins": 6}
    assert [note.split(" with ")[0] for note in result["notes"]] == ["default, dm quick were measured"]
    status, out, err = cli("predict", SMALL + ",task=findings", "--ipc", 2)
    assert status == 2 and out == "" and "allowed: binary, multi-class" in err
    status, out, _ = cli("predict", SMALL, "--ipc", 2, "--method", "dm quick")
    assert status == 0 and "dm quick was measured with real first images" in out


def test_predict_learns_from_a_study(database, cli, short):
    status, out, _ = cli("predict", SMALL + ",seed=5", "--ipc", 2, "--db", database, "--json")
    assert status == 0
    result = json.loads(out)
    for metric in QUANTITIES:
        p = result["predictions"]["herding"][metric]
        assert p["ci95"][0] <= p["mean"] <= p["ci95"][1]
    assert result["verdict"]["code"] in {"worth it", "random images will do", "more images needed", "will not work"}
    assert result["learned_from"]["runs"] >= 12 and result["images_per_class"] == [2, 2, 2]
    status, out, _ = cli("predict", SMALL, "--ipc", 1, "--db", database, "--method", "herding")
    assert status == 0 and "learned from" in out and "herding" in out


def test_methods_that_store_smaller_images_are_predicted_by_their_bytes(database, monkeypatch, short):
    """A class of few images does not fill a package of twenty quarter images; what it holds has fewer bytes."""
    asked = {}

    def remembered(prepared, packages, advance):
        asked.update(packages)
        return features(prepared, packages, advance)

    monkeypatch.setattr("medistill.commands.predict.features", remembered)
    result = medistill.predict(SMALL, ipc=5, db=database)
    assert set(result["predictions"]) == {"random", "herding", "herding, smaller"}
    sizes = {name: package.counts(prepare(medistill.load(SMALL))) for name, package in asked.items()}
    assert sizes["random"] == sizes["herding"] == (5, 5, 5)
    assert sizes["herding, smaller"] == tuple(-(-min(20, n) // 4) for n in medistill.load(SMALL).counts("train"))


def test_small_images_leave_out_what_cannot_store_them(database, monkeypatch, short):
    known = Indicator.configurations.fget

    def smaller(self):
        found = known(self)
        return found | {"herding, smaller": {**found["herding, smaller"], "factor": 3}}

    monkeypatch.setattr(Indicator, "configurations", property(smaller))
    assert set(medistill.predict(SMALL, ipc=1, db=database)["predictions"]) == {"random", "herding"}
    with pytest.raises(ConfigError, match="--factor: 3, which leaves 5x5"):
        medistill.predict(SMALL, ipc=1, db=database, method="herding, smaller")


def test_what_predict_cannot_do_is_one_line(database, cli, tmp_path):
    with pytest.raises(ConfigError, match="no study measured 'herdin'; did you mean 'herding'"):
        medistill.predict(SMALL, ipc=1, method="herdin", db=database)
    status, out, err = cli("predict", SMALL, "--ipc", 99999, "--db", database)
    assert status == 2 and out == "" and "--ipc: 99999" in err and "left out" not in err
    status, _, err = cli("predict", SMALL, "--ipc", 1, "--db", tmp_path / "absent.db")
    assert status == 2 and "no such database" in err


def test_a_study_assesses_its_indicator(database):
    with Store(database) as store:
        runs, tables = store.runs(), {t.key: t for t in all_tables(store)}
    assert len(examples_of(runs)) == 14
    rows = tables["indicator"].rows
    assert {row[0] for row in rows} == {q.replace("_", " ") for q in QUANTITIES}
    assert {row[1] for row in rows} >= {"indicator", "mean of the others", "number of classes"}
    assert all(row[2] == 14 and 0 <= row[-1] <= 1 for row in rows)
    each = tables["origins"].rows
    whole = {row[0]: row[3] for row in rows if row[1] == "indicator"}
    for column, quantity in enumerate(QUANTITIES, 2):
        weighted = sum(row[1] * row[column] for row in each) / 14
        assert weighted == pytest.approx(whole[quantity.replace("_", " ")])


def test_the_report_draws_what_is_predicted_against_what_was_measured(database, tmp_path):
    medistill.study_report(database, out=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    for title in (
        "Recovery by size",
        "The indicator on unseen origins",
        "Representativeness and what networks reach",
    ):
        assert title in page
    assert page.count("data:image/svg+xml") == 3
