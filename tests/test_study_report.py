"""A study's tables and sentences: every figure is one of the database, and words say what figures say."""

import csv
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pyarrow import parquet

import medistill
from medistill.errors import DataError
from medistill.prediction.ranks import partial_spearman, spearman
from medistill.records.store import Store
from medistill.reporting.page import Column, Table
from medistill.study.prediction_tables import TRAINED, reachable, representativeness_table
from medistill.study.report import TABLES, all_tables
from medistill.study.statements import statements
from medistill.study.tables import boundary, cells, equivalents, pooled_table, results, sites
from studies import record

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1_macro")


def result(level, full=0.9, random=0.6, images=20, matched=None, smaller=False):
    """What an evaluation of two classes gives, all metrics alike."""

    def of(value):
        return {m: {"mean": value, "std": 0.0, "ci95": [value - 0.01, value + 0.01]} for m in METRICS}

    def gain(value):
        return {m: {"mean": value, "ci95": [value - 0.05, value + 0.05]} for m in METRICS}

    arms = {
        "distilled": {m: {**v, "std": 0.02} for m, v in of(level).items()},
        "random": of(random),
        "full": of(full),
    }
    recovery = dict.fromkeys(METRICS, level / full)
    interval = {m: [level / full - 0.02, level / full + 0.02] for m in METRICS}
    return {
        "arms": arms, "recovery": recovery, "recovery_ci95": interval,
        "recovery_above_baseline": recovery, "recovery_above_baseline_ci95": dict.fromkeys(METRICS),
        "gain_over_random": gain(level - random), "gain_over_random_matched": matched and gain(matched),
        "transfer": {}, "robustness": None, "architecture": "convnet", "repeats": 3,
        "images": {"distilled": 4 * images if smaller else images, "random": images, "full": 2000},
        "compression": {
            "images": images / 2000, "stored_images": (4 if smaller else 1) * images / 2000, "bytes": 0.01,
        },
        "bytes": 1234, "cost": {"seconds": 5.0, "peak_memory_mb": 400.0},
        "representativeness": {"pixels.ridge": level * 2, "pixels.mmd": -level},
    }  # fmt: skip


def runs():
    found = []
    for method, levels in (("dm", {1: 0.7, 10: 0.84, 50: 0.88}), ("random", {1: 0.5, 10: 0.6, 50: 0.8})):
        for ipc, level in levels.items():
            for seed in (0, 1):
                random = {1: 0.5, 10: 0.6, 50: 0.8}[ipc]
                made = result(level + 0.01 * seed, random=random, images=2 * ipc)
                found.append(record(identity=f"{method}{ipc}{seed}", method=method, ipc=ipc, seed=seed, result=made))
    return found


def test_means_over_seeds():
    table = results(cells(runs()))
    row = next(r for r in table.rows if r[1:3] == ["dm", "10"])
    value = dict(zip([c.title for c in table.columns], row, strict=True))
    assert value["balanced accuracy"] == pytest.approx(0.845) and value["seeds"] == 2
    assert value["between seeds"] == pytest.approx(np.std([0.84, 0.85], ddof=1))
    assert value["recovery"] == pytest.approx(0.845 / 0.9) and value["low"] == pytest.approx(0.24 - 0.05)
    assert value["high"] == pytest.approx(0.25 + 0.05), "the outermost ends"
    assert value["gain over random, same storage and labels"] == value["gain over random"], (
        "a plain package has no other"
    )


def test_boundary_marks_what_is_reached():
    table = boundary(cells(runs()))
    assert [c.title for c in table.columns] == ["data", "per class", "dm", "random"]
    marks = {row[1]: table.columns[2].mark(row[2]) for row in table.rows}
    assert marks == {"1": 0, "10": 1, "50": 2}


def test_a_distilled_image_equals_random_ones_on_their_own_curve():
    table = equivalents(cells(runs()))
    by_size = {row[2]: row for row in table.rows}
    # 0.705 lies between random images' 0.6 at 10 and 0.8 at 50.
    expected = 10 * 5 ** ((0.705 - 0.6) / 0.2)
    assert by_size["1"][4] == pytest.approx(expected) and by_size["1"][5] == pytest.approx(expected)
    top = [record(result=result(0.95, images=20), ipc=10)]
    assert equivalents(cells(top)).rows[0][-1] == "at least"


def test_rank_correlations_with_something_held_fixed():
    rng = np.random.default_rng(0)
    size = np.repeat([1.0, 10.0, 50.0], 20)
    score, level = np.log(size) + 0.1 * rng.normal(size=60), np.log(size) + 0.1 * rng.normal(size=60)
    assert spearman(score, level) > 0.85
    partial, low, high = partial_spearman(score, level, size)
    assert abs(partial) < 0.35 and low < partial < high and low < 0 < high
    same, *_ = partial_spearman(level, level, size)
    assert same == pytest.approx(1)
    assert spearman(np.ones(5), np.arange(5.0)) is None


def test_representativeness_is_ranked_within_a_data_set():
    table = representativeness_table(cells(runs()))
    by_score = {row[1]: row for row in table.rows}
    assert by_score["pixels.ridge"][3] == pytest.approx(1) and by_score["pixels.mmd"][3] == pytest.approx(-1)
    assert 0.9 < by_score["pixels.ridge"][4] < 1
    assert TRAINED not in by_score, "there were no validation images"
    mixed = runs()
    mixed[0] = dataclasses.replace(mixed[0], result={**mixed[0].result, "representativeness": {"pixels.mmd": 0.1}})
    assert [row[1] for row in representativeness_table(cells(mixed)).rows] == ["pixels.mmd"]
    with_validation = [
        dataclasses.replace(r, result={**r.result, "validation": -r.result["bytes"] * i})
        for i, r in enumerate(runs())
    ]
    *_, last = representativeness_table(cells(with_validation)).rows
    levels = [r.result["arms"]["distilled"]["balanced_accuracy"]["mean"] for r in with_validation]
    assert last[1] == TRAINED and last[3] == pytest.approx(spearman(-np.arange(len(levels)), np.array(levels)))


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.6])
def test_what_a_score_can_reach_is_what_one_that_knew_the_truth_would(noise):
    rng = np.random.default_rng(0)
    told, real = [], []
    for _ in range(150):
        truth = rng.normal(0, 1, 20)
        level = truth + rng.normal(0, noise, 20)
        told.append(reachable(level, np.full(20, noise)) or 0)
        real.append(spearman(truth, level))
    assert np.mean(told) == pytest.approx(np.mean(real), abs=0.03)
    assert reachable(np.ones(5), np.ones(5)) is None


def test_sentences_say_what_the_figures_say():
    found = statements(cells(runs()), runs())
    text = [s.text for s in found]
    assert text[0] == (
        "a: dm (10 images per class, 1.00% of their number) recovers 93.9% [91.3%, 96.4%] of the full data's "
        "balanced accuracy; random images of as many bytes 66.7%."
    )
    assert not any(" the best was " in t for t in text), "one data set is no contest"
    alone = record(identity="alone", data="b", method="random", ipc=1, result=result(0.9, images=2))
    herding = dataclasses.replace(alone, identity="h", data="c", method="herding")
    more = [*runs(), alone, herding, dataclasses.replace(alone, identity="r", data="c")]
    again = [dataclasses.replace(r, identity=f"{r.identity}2", data=f"{r.data} 2") for r in more]
    tie = [
        dataclasses.replace(r, identity=f"{r.identity}3", data="a 3", result=result(0.5, images=2)) for r in more[:12]
    ]
    counted = [s.text for s in statements(cells([*more, *again, *tie]), []) if " the best was " in s.text]
    assert [t for t in counted if t.startswith("With 1 ")] == [
        "With 1 image per class, of dm and random the best was dm on 3 and random on 1 of 3 data sets "
        "(where several were equal, each counts).",
        "With 1 image per class, of herding and random the best was herding on 2 and random on 2 of 2 data sets "
        "(where several were equal, each counts).",
    ], "one method alone is no contest, others are contests of their own"
    other = [
        dataclasses.replace(
            r, specification={**r.specification, "evaluate": {"recipe": {"width": 8}, "architectures": ["x"]}}
        )
        for r in again
    ]
    assert not any(" the best was " in s.text for s in statements(cells([*more, *other]), [])), "by another recipe"
    assert any(
        re.search("^With 10 images per class dm gains .* above zero, on 1 of 1 data set: a.$", t) for t in text
    )
    unsure = [r if r.seed == 0 else dataclasses.replace(r, result=result(0.62)) for r in runs()]
    assert any("on 0 of 1 data set." in s.text for s in statements(cells(unsure), [])), "one seed gains nothing"
    weak = [dataclasses.replace(r, result=result(0.62, images=20, matched=0.01)) for r in runs() if r.ipc == 10]
    text = [s.text for s in statements(cells(weak), weak)]
    assert not any(t.startswith("a: ") for t in text), "one method alone says little"
    weak += [dataclasses.replace(r, identity="k", method="k-means", result=result(0.63)) for r in weak[:1]]
    text = [s.text for s in statements(cells(weak), weak)]
    assert text[0].startswith("a: none of k-means and dm reached 90%") or "none of dm and k-means reached" in text[0]
    assert "the best: k-means (10 images per class" in text[0] and any("on 0 of 1 data set." in t for t in text)
    assert {s.table for s in found} <= {"boundary", "results"} and statements([], []) == []


def test_smaller_images_are_not_taken_for_fewer():
    small = [record(result=result(0.88, smaller=True)), record(identity="2", method="k-means", result=result(0.89))]
    text = statements(cells(small), [])[0].text
    assert text.startswith("a: k-means (10 images per class, 1.00% of their number) recovers 98.9%"), (
        "the best of a size"
    )
    text = statements(cells(small[:1]), [])[0].text
    assert "dm (the pixels of 10 images per class, 1.00% of all; 80 smaller images, 4.00% of their number)" in text
    few = [s.text for s in statements(cells(small), []) if "counted by number" in s.text]
    assert few == [
        f"With 1% to 5% of the images, counted by number, {m} recovers at least 90% of the full data's "
        "balanced accuracy in 1 of 1 cases." for m in ("dm", "k-means")
    ]  # fmt: skip
    short = [
        *small,
        record(identity="3", data="b", result=result(0.7)),
        record(identity="4", ipc=90, result=result(0.7)),
    ]
    short[3] = dataclasses.replace(
        short[3], result={**short[3].result, "compression": {"images": 0.2, "stored_images": 0.2}}
    )
    assert any(
        s.text.endswith("in 1 of 2 cases; not on b with 10 images per class (77.8%).")
        for s in statements(cells(short), [])
    )
    guess = dict.fromkeys(METRICS)
    blind = [dataclasses.replace(small[0], result={**small[0].result, "recovery_above_baseline": guess})]
    assert not any("recovers" in s.text for s in statements(cells(blind), [])), "a share of guessing says nothing"


def test_other_sites_and_pooled_packages_are_told():
    base = result(0.8)
    moved = {"sites": {"b": {**base, "recovery": base["recovery"]}}}
    arms = {"pooled": base["arms"]["distilled"], "alone: b": base["arms"]["random"]}
    over = {"alone: b": {m: {"mean": 0.2, "ci95": [0.1, 0.3]} for m in METRICS}}
    both = {"sites": {"b": {"arms": arms, "gain_over": over}}, "images": {"pooled": 40, "alone: b": 20}}
    found = [
        record(
            identity="t", kind="transfer", data="a", result=moved, specification={"site": {"entry": {"name": "b"}}}
        ),
        record(identity="p", kind="pooled", data="a + b", result=both),
    ]
    text = [s.text for s in statements([], found)]
    assert any(
        t.startswith(
            "Trained on a, tested at b, with 10 images per class: balanced accuracy 0.800 by dm; 0.900 with all"
        )
        for t in text
    )
    assert any("are better than its own alone (+0.200 [+0.100, +0.300])" in t for t in text)
    assert sites(found).rows[0][:5] == ["a", "b", "dm", "10", 0] and len(pooled_table(found).rows) == 2
    assert not any("guessing" in t for t in text)
    blind = {**base, "recovery_above_baseline": dict.fromkeys(METRICS)}
    guessed = [dataclasses.replace(found[0], result={"sites": {"b": blind}})]
    assert "Not even all images are surely better than guessing there." in statements([], guessed)[0].text
    assert cells(found) == []


class Structure(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.images = set(), set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"][1:]} if tag == "a" else set()
        self.images += [found] if tag == "img" else []


def test_the_page_and_the_tables_agree_with_the_database(tmp_path, cli):
    with Store(tmp_path / "s.db", write=True) as store:
        for run in runs():
            store.record(run, [])
        store.record(record(identity="bad", status="failed", error="no & such", result=None, method="mtt"), [])
    status, out, err = cli("study", "report", tmp_path / "s.db")
    assert status == 0 and err == "" and str(tmp_path / "s.html") in out
    page = Structure()
    page.feed((tmp_path / "s.html").read_text())
    assert page.links <= page.ids and {"boundary", "results", "failures"} <= page.ids
    assert all(image["alt"] and image["src"].startswith("data:") for image in page.images) and page.images
    with Store(tmp_path / "s.db") as store:
        made = {table.key: table for table in all_tables(store)}
    for key, table in made.items():
        rows = list(csv.reader(io.StringIO((tmp_path / "s-tables" / f"{key}.csv").read_text())))
        assert len(rows) == 1 + len(table.rows)
        assert parquet.read_table(tmp_path / "s-tables" / f"{key}.parquet").num_rows == len(table.rows)
    assert r"no \& such" in (tmp_path / "s-tables" / "failures.tex").read_text()
    first = (tmp_path / "s.html").read_bytes()
    medistill.study_report(tmp_path / "s.db")
    assert (tmp_path / "s.html").read_bytes() == first


def test_a_report_does_not_take_its_databases_place(tmp_path, cli):
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(runs()[0], [])
    before = (tmp_path / "s.db").read_bytes()
    status, out, err = cli("study", "report", tmp_path / "s.db", "--out", tmp_path / "x" / ".." / "s.db")
    assert status == 2 and out == "" and "which is read; give --out a place apart" in err
    assert (tmp_path / "s.db").read_bytes() == before


def test_tables_of_an_earlier_report_do_not_stay(tmp_path):
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(runs()[0], [])
        store.record(record(identity="bad", status="failed", error="x", result=None, method="mtt"), [])
        medistill.study_report(tmp_path / "s.db")
        (tmp_path / "s-tables" / "mine.csv").write_text("a user's own")
        assert (tmp_path / "s-tables" / "failures.csv").exists()
        store.record(record(identity="bad", method="mtt", result=runs()[0].result), [])
    medistill.study_report(tmp_path / "s.db")
    assert not (tmp_path / "s-tables" / "failures.csv").exists() and (tmp_path / "s-tables" / "mine.csv").exists()


def test_a_report_takes_no_file_of_somebody_else(tmp_path, cli):
    with Store(tmp_path / "s.db", write=True) as store:
        store.record(runs()[0], [])
    for name in ("sites.csv", "results.tex"):  # one that would be deleted, one that would be written
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("a user's own")
        status, out, err = cli("study", "report", tmp_path / "s.db", "--tables", folder)
        assert status == 2 and out == "" and f"holds {name}, which would be overwritten" in err
        assert [p.read_text() for p in folder.iterdir()] == ["a user's own"] and not (tmp_path / "s.html").exists()


def test_keys_of_tables_are_known(tmp_path):
    with Store(tmp_path / "s.db", write=True) as store:
        for run in runs():
            store.record(run, [])
        assert {table.key for table in all_tables(store)} <= set(TABLES)


def test_nothing_to_report_is_one_line(tmp_path, cli):
    with Store(tmp_path / "s.db", write=True):
        pass
    with pytest.raises(DataError, match="holds no run yet"):
        medistill.study_report(tmp_path / "s.db")
    status, out, err = cli("study", "report", tmp_path / "absent.db")
    assert status == 2 and out == "" and "no such database" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "absent.db").exists()


def test_values_are_written_for_people():
    assert Column("x", ".1%").text(0.912) == "91.2%" and Column("x", "d").text(None) == "-"
    table = Table("k", "T", "", [Column("a_b"), Column("x", "+.2f")], [["50 %", 0.5], ["y", None]])
    assert table.csv() == "a_b,x\n50 %,0.5\ny,\n"
    assert r"a\_b & x \\" in table.latex() and r"50 \% & +0.50 \\" in table.latex()
    assert table.markdown().splitlines()[2] == "| 50 % | +0.50 |"


def test_names_may_hold_any_character(tmp_path):
    with Store(tmp_path / "my db", write=True) as store:
        for method in ("_mine", "cost $5_$ \\x"):
            store.record(record(identity=method, data="a $b$ & <c>", method=method, result=result(0.8)), [])
    made = medistill.study_report(tmp_path / "my db")
    assert "a $b$ &amp; &lt;c&gt;" in (tmp_path / "my db.html").read_text()
    assert r"cost \$5\_\$ \textbackslash{}x" in (tmp_path / "my db-tables" / "results.tex").read_text()
    assert made["runs"] == 2


def test_shares_are_not_called_images_per_class():
    found = [record(identity=str(r), ipc=None, ratio=r, result=result(0.85)) for r in (0.001, 0.00104)]
    assert len(boundary(cells(found)).rows) == 2
    text = " ".join(s.text for s in statements(cells(found), found))
    assert "0.1 % of the images" in text and "per class" not in text


def test_capped_classes_count_as_what_they_are():
    """Fifty asked of two classes, one of which has thirteen: 31.5 a class, not 63 of one."""
    made = {**result(0.7, random=0.6, images=63), "features": {"classes": 2.0}}
    table = equivalents(cells([record(ipc=50, result=made)]))
    assert table.rows[0][5] == pytest.approx(table.rows[0][4] / 31.5)
