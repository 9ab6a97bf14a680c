"""A study: what identifies a run, what is kept, what fails, what is never done twice."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import medistill
from conftest import ROOT, TINY, npz_arrays
from medistill.config import build, read_yaml
from medistill.data.phantom import Phantom, make_phantom
from medistill.errors import ConfigError, MedistillError
from medistill.records.store import Store
from medistill.study import engines, work
from medistill.study.config import StudyConfig, read_study
from medistill.study.figures import figures_of
from medistill.study.plan import estimated_seconds, plan
from studies import EVALUATE, SMALL, STUDY, begin_processes_with, in_this_process, outcome, record, write


def entries_in(specification):
    """Every data entry of a specification, however deep."""
    if isinstance(specification, list):
        return [entry for item in specification for entry in entries_in(item)]
    if not isinstance(specification, dict):
        return []
    own = [specification] if "variation_seed" in specification else []
    return own + [entry for item in specification.values() for entry in entries_in(item)]


def test_a_study_is_planned_run_once_and_kept(tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    file = write(tmp_path, transfer=[{"from": "a", "to": "b"}], pooled=[{"data": ["a", "b"]}])
    planned = medistill.study_run(file, only_plan=True)
    assert planned["runs"] == 8 and planned["ran"] == 0 and not (tmp_path / "study.db").exists()
    first = medistill.study_run(file)
    assert (first["runs"], first["done"], first["failed"], first["ran"]) == (8, 8, 0, 8)
    again = medistill.study_run(file)
    assert again["ran"] == 0 and again["done"] == 8
    with Store(tmp_path / "study.db") as store:
        runs = store.runs()
        figures = list(store.figures())
    assert {r.kind for r in runs} == {"distilled", "transfer", "pooled"} and all(r.result for r in runs)
    kept = [entry["source"] for run in runs for entry in entries_in(run.specification)]
    assert kept and all("/" not in source for source in kept), "a database tells where data lie"
    of_a = next(r for r in runs if r.data == "a" and r.method == "herding" and r.kind == "distilled")
    mine = [f for f in figures if f[0] == of_a.identity]
    level = next(f for f in mine if f[1:6] == ("", "convnet", "level", "distilled", "auroc"))
    assert level[6] == of_a.result["arms"]["distilled"]["auroc"]["mean"]
    moved = next(r for r in runs if r.kind == "transfer" and r.method == "herding")
    assert any(f[0] == moved.identity and f[1] == "b" and f[3] == "gain over" for f in figures)
    together = next(r for r in runs if r.kind == "pooled")
    assert together.data == "a + b" and set(together.result["sites"]) == {"a", "b"}
    assert together.result["images"]["pooled"] == 12 and together.result["images"]["alone: b"] == 6
    more = write(tmp_path, methods=["random", "herding", "k-means"])
    assert medistill.study_run(more)["ran"] == 2, "a method adds one run for each data set, and changes no other"


def test_the_same_result_as_the_commands(tmp_path, monkeypatch):
    """A study adds nothing of its own to a figure."""
    in_this_process(monkeypatch)
    medistill.study_run(write(tmp_path, data=[{"source": SMALL, "name": "a"}], methods=["herding"]))
    with Store(tmp_path / "study.db") as store:
        (run,) = store.runs()
    medistill.distill(SMALL, out=tmp_path / "p", method="herding", ipc=2, seed=0)
    config = StudyConfig.model_validate(STUDY).evaluate
    plain = medistill.evaluate(tmp_path / "p", on=SMALL, config=config)
    assert run.result["arms"] == plain["arms"] and run.result["gain_over_random"] == plain["gain_over_random"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "another"}, True),
        ({"evaluate": {**EVALUATE, "repeats": 3}}, False),
        ({"data": [{"source": SMALL, "name": "renamed"}]}, True),
        ({"data": [{"source": SMALL + ",seed=1", "name": "a"}]}, False),
        ({"data": [{"source": SMALL, "name": "a", "images": 0.5}]}, False),
        ({"methods": [{"method": "dm", "settings": {"method": {"iterations": 5}}}]}, False),
        ({"methods": [{"method": "random", "name": "chance"}]}, True),
        ({"seeds": [1]}, False),
    ],
)
def test_identity_is_what_determines_a_result(tmp_path, change, same):
    base = {"data": [{"source": SMALL, "name": "a"}], "methods": ["random"]}
    first = plan(read_study(write(tmp_path, **base)))[0].identity
    other = plan(read_study(write(tmp_path, **{**base, **change})))[0].identity
    assert (first == other) is same


def test_order_trains_once_what_many_need(tmp_path):
    runs = plan(read_study(write(tmp_path, ipc=[1, 2], seeds=[0, 1], pooled=[{"data": ["a", "b"]}])))
    assert [r.stage for r in runs] == sorted(r.stage for r in runs)
    assert sum(r.stage == 0 for r in runs) == 2 and sum(r.stage == 1 for r in runs) == 2
    assert all(r.stage == 3 for r in runs if r.kind == "pooled")


def test_a_failed_run_is_told_and_stops_nothing(tmp_path):
    """Images of sixteen pixels cannot be stored at an eighth of the side; here with processes of their own."""
    methods = ["random", {"method": "random", "name": "smaller", "settings": {"factor": 8}}]
    file = write(tmp_path, data=[{"source": SMALL, "name": "a"}], methods=methods, ipc=[1])
    result = medistill.study_run(file, processes=2)
    assert (result["done"], result["failed"]) == (1, 1)
    assert "--factor: 8" in next(iter(result["errors"].values()))
    assert medistill.study_run(file)["ran"] == 0
    again = medistill.study_run(file, retry_failed=True)
    assert again["ran"] == 1 and again["failed"] == 1


@pytest.mark.parametrize(
    ("processes", "how"),
    [
        pytest.param("1", signal.SIGKILL, marks=pytest.mark.slow),
        ("2", signal.SIGKILL),
        pytest.param("2", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_the_same_command_goes_on(tmp_path, monkeypatch, processes, how):
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "cache"))
    data = [{"source": SMALL, "name": "a"}]
    file = write(tmp_path, data=data, methods=["random", "herding", "k-means"], seeds=[0, 1])
    command = [sys.executable, "-m", "medistill.cli", "study", "run", str(file), "--processes", processes]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    database = tmp_path / "study.db"

    def recorded():
        try:
            return (
                sqlite3.connect(f"file:{database}?mode=ro", uri=True)
                .execute("SELECT count(*) FROM runs")
                .fetchone()[0]
            )
        except sqlite3.OperationalError:
            return 0

    while recorded() < 2 and process.is_running():
        time.sleep(0.05)
    children = process.children(recursive=True)
    process.send_signal(how)
    process.wait()
    before = recorded()
    assert 2 <= before < 6
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "what the killed study had begun goes on"
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["done"] == 6 and result["ran"] == 6 - before
    with Store(database) as store:
        starts = [r.starts for r in store.runs()]
    assert sum(starts) <= 6 + int(processes), "more than the runs that were cut off began anew"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": [{"source": "absent.npz"}]}, "absent.npz: no such file.*--data-folder"),
        ({"methods": ["herdng"]}, "did you mean 'herding'"),
        ({"methods": [{"method": "dm", "settings": {"method": {"iteratons": 5}}}]}, "did you mean 'iterations'"),
        ({"ipc": []}, "how many images"),
        ({"data": [SMALL, SMALL]}, "two data sets are called"),
        ({"methods": ["dm", {"method": "dm", "settings": {}}]}, "two methods are called 'dm'"),
        ({"data": [{"source": SMALL, "imgs": 0.5}]}, "did you mean 'images'"),
        ({"evaluate": {"architectures": 5}}, "architectures: 5"),
        ({"ipc": [0]}, "ipc.0: 0"),
        ({"ratio": [5]}, "ratio.0: 5"),
        ({"ratio": 5}, "ratio.0: 5"),
        ({"methods": None, "ipc": "many"}, r"methods: None.*wrong too: ipc"),
        ({"ratio": [float("nan")]}, "ratio.0: nan"),
        ({"seeds": [10**20]}, "seeds.0: 1"),
        ({"pooled": [{"data": ["a", "b"], "classes": {"c": {}}}]}, "classes of 'c', which is not pooled"),
        ({"methods": [{"method": "dm", "settings": {"data": {"size": 20}}}]}, "how data are read is no setting"),
        ({"data": [{"source": "x" * 300}]}, "is no usable path"),
        ({"data": ["nofolder"]}, "nofolder: no such file or folder.*--data-folder"),
        ({"methods": [{"method": "dm", "settings": {"ipc": 3}}]}, "ipc is no setting of a method"),
        ({"methods": [{"method": "dm", "settings": {"seed": 3}}]}, "seed is no setting of a method.* seeds"),
        ({"methods": [{"method": "dm", "preset": "slow"}]}, r"study.yaml: method 'dm slow': .*no preset 'slow'"),
        (
            {"data": [{"source": SMALL, "methods": [{"method": "herding", "name": "random"}]}]},
            "two methods are called 'random'",
        ),
        ({"data": [{"source": SMALL, "ipc": []}]}, "ipc: "),
        ({"data": [{"source": SMALL, "seeds": []}]}, "seeds: "),
        ({"ipc": [True]}, "ipc.0: True"),
        ({"methods": 5}, "methods: 5; allowed: a list"),
        ({"pooled": ["a"]}, "pooled.0: 'a'; allowed: settings below it"),
        ({"ipc": ["1"]}, "ipc.0: '1'"),
        ({"ipc": [1000]}, r"study.yaml: data set 'a': --ipc: 1000; allowed: 1 to 12"),
        ({"name": " "}, "name: ' ' is no name"),
        ({"data": [{"source": SMALL, "name": "a\x1b[31m"}]}, "is no name"),
        ({"pooled": [{"data": ["a", "a"]}]}, "one of them twice"),
        (
            {"transfer": [{"from": "a", "to": "b", "classes": {"ring lesion": None, "no lesion": None}}]},
            "transfer from 'a' to 'b': fewer than two classes are left to test on",
        ),
        (
            {
                "pooled": [{"data": ["a", "b"]}],
                "data": [STUDY["data"][0], {"source": SMALL + ",size=20", "name": "b"}],
            },
            "cannot be pooled",
        ),
        ({"transfer": [{"from": "a", "to": "c"}]}, "no data set of the study is called 'c'"),
        (
            {"transfer": [{"from": "a", "to": "b", "methods": ["dm"]}]},
            "study.yaml: transfer from 'a' to 'b': methods: 'dm' is none that packages are made with; allowed: ",
        ),
        ({"pooled": [{"data": ["a", "b"], "ipc": [2, 7]}]}, "pooled a . b: ipc: 7 is none"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"data": [{"source": SMALL, "name": "a", "classes": {"cyst": "x"}}]}, "has no class 'cyst'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_and_nothing_is_made(tmp_path, cli, changes, words):
    status, out, err = cli("study", "run", write(tmp_path, **changes))
    assert status == 2 and out == "" and len(err.strip().splitlines()) == 1
    assert re.search(words, err), err
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_wrong_engines_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"--engine: 'slurm'; allowed: joblib, ray, dask"):
        medistill.study_run(write(tmp_path), engine="slurm")
    with pytest.raises(ConfigError, match="leave --address out"):
        medistill.study_run(write(tmp_path), address="10.0.0.1:80")
    with pytest.raises(ConfigError, match="--processes: -3; allowed: 1 and more"):
        medistill.study_run(write(tmp_path), processes=-3)
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_time_left_is_that_of_like_runs(tmp_path):
    todo = plan(read_study(write(tmp_path, methods=["random"])))
    assert estimated_seconds(todo, []) is None
    assert estimated_seconds(todo, [record(method="dm", seconds=5.0)]) == 10.0
    known = [
        record(method="random", ipc=2, data="a", seconds=1.0),
        record(method="random", ipc=2, data="x", seconds=4.0),
    ]
    assert estimated_seconds(todo, known) == 1.0 + 2.5


def test_figures_hold_all_that_tables_need(package):
    config = TINY.model_copy(update={"robust_scores": True, "architectures": ("convnet", "mlp")})
    result = medistill.evaluate(package, on=SMALL, config=config)
    rows = figures_of({**result, "bytes": 5, "cost": {"seconds": 1, "peak_memory_mb": 2}})
    assert len({row[:5] for row in rows}) == len(rows)
    assert {row[2] for row in rows} >= {
        "level",
        "gain over",
        "recovery",
        "recovery above baseline",
        "majority baseline",
        "robustness",
    }
    assert {row[1] for row in rows if row[2] == "level"} == {"convnet", "mlp"}


def test_the_phantoms_of_the_smoke_study_can_be_read():
    assert len(plan(read_study(ROOT / "studies" / "smoke.yaml"))) == 20


def test_the_settings_of_every_study_of_ours_are_known():
    files = sorted((ROOT / "studies").glob("*.yaml"))
    names = [build(StudyConfig, read_yaml(file), str(file)).name for file in files]
    assert names == [file.stem for file in files] and {"feasibility", "smoke"} <= set(names)


def test_real_second_site_by_class_names(real, tmp_path):
    """Bloodcells' packages can be asked about the other hospital's cells, whose classes are fewer."""
    names = [
        "basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil",
        "platelet",
    ]  # fmt: skip
    data = [
        {"source": str(real("bloodcells_28.npz")), "name": "blood", "data": {"class_names": names}, "images": 0.02},
        {
            "source": str(real("whitecells_28.npz")), "name": "white",
            "data": {"class_names": ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"]},
            "methods": ["random"], "ipc": [1],
        },
    ]  # fmt: skip
    file = write(tmp_path, data=data, methods=["random"], transfer=[{"from": "blood", "to": "white"}])
    run = next(r for r in plan(read_study(file)) if r.kind == "transfer")
    measured = work.perform(run.specification)
    assert measured["sites"]["white"]["test_images"] == 149
    assert measured["sites"]["white"]["arms"]["full"]["balanced_accuracy"]["mean"] > 0


def test_npz_of_a_folder_named_in_the_environment(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", **npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16))))
    monkeypatch.setenv("MEDISTILL_DATA", str(tmp_path))
    (tmp_path / "sub").mkdir()
    config = read_study(write(tmp_path / "sub", data=["x.npz"]))
    assert config.data[0].source == str(tmp_path / "x.npz") and config.data[0].name == "x"


def test_a_class_of_one_training_image_runs(tmp_path):
    arrays = npz_arrays(make_phantom(Phantom(classes=2, images=40, size=16)))
    keep = np.r_[
        np.flatnonzero(arrays["train_labels"][:, 0] == 0), np.flatnonzero(arrays["train_labels"][:, 0] == 1)[:1]
    ]
    arrays["train_images"], arrays["train_labels"] = arrays["train_images"][keep], arrays["train_labels"][keep]
    np.savez(tmp_path / "x.npz", **arrays)
    file = write(tmp_path, data=[str(tmp_path / "x.npz")], methods=["random"], ipc=[1], features=True)
    result = medistill.study_run(file, processes=1)
    assert result["done"] == 1, result["errors"]
    with Store(tmp_path / "study.db") as store:
        assert all(np.isfinite(v) for v in store.runs()[0].result["features"].values())


def test_a_cache_that_cannot_be_written_is_told_as_such(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDISTILL_CACHE", str(tmp_path / "file"))
    told = work.do("0" * 64, {"kind": "distilled"}, 1)
    assert told["status"] == "failed" and "cannot be written" in told["error"]
    assert "MEDISTILL_CACHE" in told["error"] and "memory" not in told["error"]


def test_errors_are_kept_without_places(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", **npz_arrays(make_phantom(Phantom(classes=2, images=20, size=16))))
    told = f"{tmp_path}/x.npz: broken; {work.user_cache()}/study/1; {sys.prefix}/lib/a.py; {work.Path.home()}/b.py"

    def execute(runs, engine, address, processes, threads, done):
        for run in runs:
            done(run, outcome("failed", error=told))

    monkeypatch.setattr(engines, "execute", execute)
    file = write(tmp_path, data=[str(tmp_path / "x.npz")], methods=["random"])
    (error,) = medistill.study_run(file)["errors"].values()
    assert error == "x.npz: broken; study/1; lib/a.py; b.py"


def test_what_ends_a_process_is_told(monkeypatch):
    monkeypatch.setattr(work, "child_environment", lambda threads: {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert work.do("1" * 64, {}, 1)["error"] == "the process ended with status 1"


def test_what_goes_wrong_around_a_run_is_its_own_failure(monkeypatch):
    def none(*_, **__):
        raise OSError("too many processes")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", none)
        told = work.do("3" * 64, {}, 1)
    assert told["status"] == "failed" and "too many processes" in told["error"]


MEASURED = """
import medistill.study.measure as measure
measure.distilled = lambda specification: print("{", flush=True) or {"figure": 1}
"""
"""A run that prints something, and measures it at once."""


def test_what_a_method_prints_is_no_answer(monkeypatch, tmp_path):
    begin_processes_with(MEASURED, tmp_path, monkeypatch)
    assert work.do("5" * 64, {"kind": "distilled"}, 1)["result"] == {"figure": 1}


def test_a_damaged_result_is_measured_again_and_kept(monkeypatch, tmp_path):
    begin_processes_with(MEASURED, tmp_path, monkeypatch)
    kept = work.folder_of("4" * 64) / "result.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{")
    first = work.do("4" * 64, {"kind": "distilled"}, 1)
    assert first["result"] == {"figure": 1} == json.loads(kept.read_text())["result"]
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("measured again"))
    assert work.do("4" * 64, {"kind": "distilled"}, 1) == first


def test_a_measured_run_survives_a_cache_that_cannot_keep_it(monkeypatch, tmp_path):
    begin_processes_with(MEASURED, tmp_path, monkeypatch)
    kept = work.folder_of("2" * 64) / "result.json"
    kept.mkdir(parents=True)  # no file can be put in its place
    assert work.do("2" * 64, {"kind": "distilled"}, 1)["result"] == {"figure": 1} and kept.is_dir()


def test_strange_addresses_are_one_line(tmp_path):
    for address in ("tcp://a..b:8786", "tcp://[::1]:1", "127.0.0.1:99999999"):
        with pytest.raises(MedistillError, match="cannot be reached"):
            medistill.study_run(write(tmp_path), engine="dask", address=address)
