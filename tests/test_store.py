"""The database of studies: what it keeps, whose it is, who else may read it."""

import sqlite3

import pytest

import medistill
from medistill.errors import DataError
from medistill.store import Store, current
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
        monkeypatch.setattr("medistill.store.PATIENCE", 2)
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

        monkeypatch.setattr("medistill.store.say", say)
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
    old = record(identity="old", finished="2026-01-01", specification={"evaluate": {"networks": 2}})
    new = record(identity="new", finished="2026-02-01", specification={"evaluate": {"networks": 3}})
    seed = record(identity="seed", seed=1, finished="2026-01-15", specification={"evaluate": {"networks": 3}})
    assert [r.identity for r in current([old, new, seed])] == ["new", "seed"]


def test_the_configuration_asked_for_last_counts(tmp_path, monkeypatch):
    """Back to three networks after a trial of five: the tables show three, not what was measured last."""
    in_this_process(monkeypatch)
    shown = []
    for networks in (2, 3, 2):
        data = [{"source": SMALL, "name": "a"}, {"source": SMALL, "name": "the same"}]
        file = write(tmp_path, data=data, methods=["random"], evaluate={**EVALUATE, "networks": networks})
        medistill.study_run(file)
        with Store(tmp_path / "study.db") as store:
            shown.append([(r.data, r.result["networks"]) for r in current(store.runs())])
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
