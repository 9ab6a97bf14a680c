"""The database of studies: what it keeps, whose it is, who else may read it."""

import sqlite3

import pytest

import medistill
from medistill.config import DistilConfig, EvaluateConfig
from medistill.distil.configuration import configured
from medistill.errors import DataError
from medistill.prediction.examples import examples_of, shipped
from medistill.prediction.features import PackageSpec
from medistill.records.records import current
from medistill.records.store import Store
from studies import EVALUATE, SMALL, in_this_process, record, write


def test_store_keeps_what_is_done_and_replaces_what_failed(tmp_path):
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(record(status="failed", error="x", result=None), [])
        store.record(record(), [("", "convnet", "level", "distilled", "auroc", 0.5, 0.4, 0.6)])
        store.record(record(seconds=9.0), [])
        with Store(tmp_path / "s.db") as reader:  # while the other one is open
            (kept,) = reader.runs()
            assert kept.seconds == 2.0 and next(iter(reader.figures()))[6] == 0.5
    (tmp_path / "no.db").write_text("not a database")
    with pytest.raises(DataError, match=r"no\.db: is no study's database"):
        Store(tmp_path / "no.db")
    with pytest.raises(DataError, match="no such database"):
        Store(tmp_path / "absent.db")


def test_another_programs_database_is_left_alone(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE patients (name TEXT)")
    before = other.read_bytes()
    with pytest.raises(DataError, match=r"other\.db: is no study's database"):
        medistill.study_run(write(tmp_path, methods=["random"]), db=other)
    assert other.read_bytes() == before


def test_a_locked_database_is_one_line(tmp_path, monkeypatch):
    with Store(tmp_path / "s.db", write=True) as store:
        store.connection.execute("PRAGMA busy_timeout = 10")
        holder = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("medistill.records.store.PATIENCE", 2)
        with pytest.raises(
            DataError, match="cannot be used.*locked.*another program reads or writes it all the time"
        ):
            store.record(record(), [])
        holder.close()


def test_a_reader_only_delays_a_study(tmp_path, monkeypatch):
    """A notebook whose query is not read to its end holds the file."""
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(record(), [])
        store.connection.execute("PRAGMA busy_timeout = 10")
        reader = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        unread = reader.execute("SELECT * FROM sqlite_master, runs")
        unread.fetchone()
        told = []

        def say(line, enabled):
            told.append(line)
            unread.close()

        monkeypatch.setattr("medistill.records.store.say", say)
        store.record(record(identity="second"), [])
        assert len(store.runs()) == 2 and len(told) == 1 and "is held by another program" in told[0]
        reader.close()


def test_databases_of_before_can_be_read_and_gone_on_with(tmp_path):
    """The first ones did not know when a run was asked for last."""
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(record(), [])
        store.connection.execute("ALTER TABLE runs DROP COLUMN asked")
    with Store(tmp_path / "s.db") as store:
        assert [r.asked for r in store.runs()] == [None]
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(record(identity="second"), [])
        assert {r.identity: r.asked is None for r in store.runs()} == {"i": True, "second": False}


def test_names_and_origins_can_be_corrected(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    medistill.study_run(write(tmp_path, data=[{"source": SMALL, "name": "a"}], methods=["random"]))
    changed = [{"source": SMALL, "name": "better", "group": "hospital"}]
    result = medistill.study_run(write(tmp_path, data=changed, methods=[{"method": "random", "name": "chance"}]))
    assert result["ran"] == 0
    with Store(tmp_path / "study.db") as store:
        (run,) = store.runs()
    assert (run.data, run.group, run.method) == ("better", "hospital", "chance")


def test_another_configuration_is_not_another_seed():
    old = record(identity="old", finished="2026-01-01", specification={"evaluate": {"repeats": 2}})
    new = record(identity="new", finished="2026-02-01", specification={"evaluate": {"repeats": 3}})
    seed = record(identity="seed", seed=1, finished="2026-01-15", specification={"evaluate": {"repeats": 3}})
    assert [r.identity for r in current([old, new, seed])] == ["new", "seed"]


def test_the_configuration_asked_for_last_counts(tmp_path, monkeypatch):
    """Back to two networks after a trial of three: the tables show two, not what was measured last."""
    in_this_process(monkeypatch)
    shown = []
    for repeats in (2, 3, 2):
        data = [{"source": SMALL, "name": "a"}, {"source": SMALL, "name": "the same"}]
        file = write(tmp_path, data=data, methods=["random"], evaluate={**EVALUATE, "repeats": repeats})
        medistill.study_run(file)
        with Store(tmp_path / "study.db") as store:
            shown.append([(r.data, r.result["repeats"]) for r in current(store.runs())])
    assert shown == [[("a", 2)], [("a", 3)], [("a", 2)]]


def test_a_corrected_transfer_replaces_the_old_one():
    old, new = (
        record(
            identity=str(i), kind="transfer", finished=f"2026-0{i}-01",
            specification={"site": {"entry": {"name": "b"}, "identity": "x", "classes": {"c": str(i)}}},
        )
        for i in (1, 2)
    )  # fmt: skip
    assert [r.identity for r in current([old, new])] == ["2"]


OLD = (
    "least_steps", "most_steps", "batch", "nets", "networks", "net", "chance", "recovery_above_chance",
    "recovery_above_chance_ci95", "gain_over_random_stored_alike", "random_stored_alike", "per_class",
    "recovery above chance",
)  # fmt: skip
"""What earlier versions called something."""


def names_in(value):
    """Every key, however deep."""
    if isinstance(value, dict):
        return set(value) | {name for each in value.values() for name in names_in(each)}
    return {name for each in value for name in names_in(each)} if isinstance(value, list) else set()


@pytest.fixture(scope="module")
def basis():
    """Runs and figures of the database that comes with the tool, which an earlier version wrote."""
    (path,) = shipped()
    with Store(path) as store:
        return store.runs(), store.figures()


def test_every_shipped_run_reads_under_the_names_of_now(basis):
    runs, _ = basis
    assert len(runs) == 250 and {run.kind for run in runs} == {"distilled", "transfer", "pooled"}
    for run in runs:
        evaluate, distil = run.specification["evaluate"], run.distil
        # "networks" is a setting of methods too, and there it is no old name.
        assert not names_in([evaluate, distil["labels"], run.result]) & set(OLD), run.title
        config = EvaluateConfig.model_validate(evaluate)
        assert config.repeats == 3 and config.recipe.min_steps == 600 and config.architectures == ("convnet",)
        assert run.recipe == runs[0].recipe
        made = DistilConfig.model_validate(distil)
        assert set(distil["method"]).isdisjoint({"learning_rate", "momentum", "optimiser"})
        learned = distil["method"]["name"] == "dm"
        assert (made.optimiser.name, made.optimiser.momentum) == (("sgd", 0.5) if learned else (None, None))
        assert run.start == "real" and ("iterations" in distil["method"]) == learned
        assert run.result["architecture"] == "convnet"


def test_every_shipped_result_has_the_arms_and_figures_of_now(basis):
    for run in (run for run in basis[0] if run.kind == "distilled"):
        assert run.task == ("binary" if run.features["classes"] == 2 else "multi-class")
        stored_otherwise = run.factor > 1 or run.distil["labels"]["teachers"] > 0
        for names in (run.result["arms"], run.result["images"]):
            assert ("random_matched" in names) == stored_otherwise
        assert (run.result["gain_over_random_matched"] is not None) == stored_otherwise
        assert run.result["majority_baseline"].keys() == run.result["recovery_above_baseline"].keys()
        for quantity in ("level", "recovery", "gain"):
            low, high = run.interval(quantity, "balanced_accuracy")
            assert low <= run.value(quantity, "balanced_accuracy") <= high


def test_every_shipped_figure_is_that_of_its_result(basis):
    runs, figures = basis
    results = {run.identity: run.result for run in runs}
    assert {row[3] for row in figures} == {
        "level", "gain over", "recovery", "recovery above baseline", "majority baseline", "representativeness",
        "validation", "cost", "size",
    }  # fmt: skip
    assert {row[4] for row in figures}.isdisjoint(OLD) and any(row[4] == "random_matched" for row in figures)
    for identity, site, _, quantity, arm, metric, mean, *_ in figures:
        scores = results[identity]["sites"][site] if site else results[identity]
        if quantity == "level":
            assert mean == scores["arms"][arm][metric]["mean"]
        elif quantity == "recovery above baseline":
            assert mean == scores["recovery_above_baseline"][metric]
        elif quantity == "majority baseline":
            assert mean == scores["majority_baseline"][metric]


def test_every_shipped_package_is_an_example_that_can_be_made_today(basis):
    examples = examples_of(basis[0])
    assert len(examples) == sum(run.kind == "distilled" for run in basis[0])
    for example in examples:
        spec = PackageSpec.of(example.distil)
        assert spec.config.ipc == example.distil["ipc"] and spec.method.info.name == example.distil["method"]["name"]


@pytest.mark.parametrize("method", ["random", "herding", "k-means"])
def test_a_coreset_of_now_is_the_one_that_was_measured(basis, method):
    """Else what is learned from the shipped study would be of another method than one of a user's own study."""
    known = next(run.distil for run in basis[0] if run.method == method)
    _, config = configured(method, known["ipc"], None, None, {}, {"seed": known["seed"]}, False)
    now = config.model_dump(mode="json", exclude={"data", "memory_limit_mb"})
    assert now == known
