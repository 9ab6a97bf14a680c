"""What a study's file may say: some packages of a transfer, versions of one source, names."""

import numpy as np
import pytest

import medistill
from conftest import npz_arrays
from medistill.data.phantom import Phantom, make_phantom
from medistill.errors import ConfigError
from medistill.records.store import Store
from medistill.study.config import read_study
from medistill.study.plan import plan
from studies import EVALUATE, SMALL, in_this_process, write


def test_transfers_and_pools_of_some_packages(tmp_path):
    some = {"methods": ["herding"], "seeds": 1, "ratio": 0.5}
    file = write(
        tmp_path, methods=["random", "herding"], ipc=[1, 2], ratio=[0.5], seeds=[0, 1],
        transfer=[{"from": "a", "to": "b", **some}], pooled=[{"data": ["a", "b"], "ipc": [2]}],
    )  # fmt: skip
    runs = {k: [r for r in plan(read_study(file)) if r.kind == k] for k in ("distilled", "transfer", "pooled")}
    assert [(r.method, r.ipc, r.ratio, r.seed) for r in runs["transfer"]] == [("herding", None, 0.5, 1)]
    assert {(r.method, r.ipc, r.seed) for r in runs["pooled"]} == {
        (m, 2, s) for m in ("random", "herding") for s in (0, 1)
    }
    assert len(runs["distilled"]) == 24
    whole = write(
        tmp_path, methods=["random", "herding"], ratio=[0.5], seeds=[0, 1], transfer=[{"from": "a", "to": "b"}]
    )
    assert runs["transfer"][0].identity in {r.identity for r in plan(read_study(whole))}


def test_versions_of_one_source_are_of_one_origin(tmp_path):
    arrays = npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16)))
    for site in ("north", "south"):
        (tmp_path / site).mkdir()
        np.savez(tmp_path / site / "x.npz", **arrays)

    def groups(*data):
        return [
            entry.group for entry in read_study(write(tmp_path, data=list(data), methods=["random"]), tmp_path).data
        ]

    half = {"source": SMALL, "name": "half", "group": "ours", "images": 0.5}
    assert groups({"source": SMALL, "name": "whole"}, half) == ["ours", "ours"]
    north, south = "north/x.npz", "south/x.npz"
    assert groups({"source": north, "name": "n"}, {"source": south, "name": "s"}) == ["north/x", "south/x"]
    with pytest.raises(ConfigError, match="'whole' is of the group 'theirs', 'half' of 'ours'"):
        groups({"source": SMALL, "name": "whole", "group": "theirs"}, half)


def test_names_that_files_give_are_looked_at_too(tmp_path):
    np.savez(tmp_path / f"{'x' * 120}.npz", **npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16))))
    with pytest.raises(ConfigError, match="is no name.*give the data set another, with name"):
        read_study(write(tmp_path, data=[f"{'x' * 120}.npz"], methods=["random"]), tmp_path)


def test_data_are_looked_for_in_one_place(tmp_path, monkeypatch):
    """Not where the command happens to be given: other data may lie there."""
    (tmp_path / "here").mkdir()
    (tmp_path / "study").mkdir()
    (tmp_path / "here" / "x.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MEDISTILL_DATA", raising=False)
    path = write(tmp_path / "study", data=["x.npz"])
    with pytest.raises(ConfigError, match=r"study/x.npz: no such file or folder"):
        read_study(path)
    monkeypatch.setenv("MEDISTILL_DATA", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"MEDISTILL_DATA=.*absent: no such folder"):
        read_study(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDISTILL_DATA")
    assert read_study(write(tmp_path / "study", data=["~/here/x.npz"])).data[0].source == str(tmp_path / "here/x.npz")


def test_the_same_images_under_two_names_are_told(tmp_path, capsys):
    data = [{"source": SMALL, "name": "a"}, {"source": SMALL, "name": "again"}]
    found = medistill.study_run(write(tmp_path, data=data), only_plan=True, progress=True)
    assert found["runs"] == 2
    assert "note: again holds the same images as a; runs that both describe count as a's" in capsys.readouterr().err


def test_limits_of_memory_curves_and_versions_that_change_nothing_do_not_repeat_runs(tmp_path, monkeypatch):
    both = {"transfer": [{"from": "a", "to": "b"}]}

    def identities(**changes):
        return {r.identity: r.kind for r in plan(read_study(write(tmp_path, **both, **changes)))}

    first = identities(methods=["dm"])
    assert identities(methods=[{"method": "dm", "settings": {"memory_limit_mb": 4000}}]) == first
    assert identities(methods=["dm"], evaluate={**EVALUATE, "curve_points": 3}) == first
    monkeypatch.setattr("medistill.study.plan.FEATURES_VERSION", 99)
    assert identities(methods=["dm"]) == first


def test_findings_grades_and_volumes_are_studied_and_reported(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    data = [
        {"source": SMALL + ",task=findings", "name": "findings"},
        {"source": SMALL + ",task=grades", "name": "grades"},
        {"source": "phantom:classes=2,images=24,size=16,depth=16", "name": "volumes"},
    ]
    result = medistill.study_run(write(tmp_path, data=data, methods=["random"], ipc=[1], features=True))
    assert result["done"] == 3, result["errors"]
    with Store(tmp_path / "study.db") as store:
        runs = {run.data: run for run in store.runs()}
    assert {name: run.task for name, run in runs.items()} == {
        "findings": "multi-label", "grades": "ordinal", "volumes": "binary",
    }  # fmt: skip
    assert "average_precision" in runs["findings"].result["arms"]["distilled"]
    assert "quadratic_kappa" in runs["grades"].result["gain_over_random"]
    assert runs["volumes"].result["representativeness"] is None and runs["grades"].result["representativeness"]
    assert all(np.isfinite(value) for run in runs.values() for value in run.features.values())
    medistill.study_report(tmp_path / "study.db")
    page = (tmp_path / "study.html").read_text()
    assert all(name in page for name in runs)
