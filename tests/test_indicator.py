"""The indicator: learns a law that is there, sees no image it must not see, and says what it does not know."""

import json
import math

import numpy as np
import pytest
import yaml

import medistill
from medistill.commands.predict import _verdict
from medistill.data.preprocess import prepare
from medistill.errors import ConfigError, DataError
from medistill.prediction.assess import assess
from medistill.prediction.examples import examples_of
from medistill.prediction.features import features
from medistill.prediction.indicator import (
    METRICS,
    QUANTITIES,
    VIEW,
    Example,
    Indicator,
    Model,
    Models,
    Prediction,
    above_chance,
    from_above_chance,
    half_width,
    left_out,
    predictions_without_two,
)  # fmt: skip
from studies import EVALUATE, SMALL, described, in_this_process

OFFSET = {"random": 0.0, "dm": 0.4, "default": 0.8}


def law(groups=8, sizes=(1, 10, 50), noise=0.02, seed=0):
    """Examples in which a method's logit is that of random images plus its offset, half of which its images show."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(groups):
        classes = int(rng.integers(2, 9))
        chance, hard = 1 / classes, rng.normal(0.5, 0.7)
        for ipc in sizes:
            z = hard + 0.4 * math.log(ipc)

            def level(shift, at=0.5, z=z):
                return from_above_chance(z + shift, at)

            known = {"classes": float(classes), "images": float(ipc * classes), "training_images": 2000.0}
            known |= {"majority": chance, "share": 0.01, "pixels": 784.0}
            for kind, shift in (("random", 0.0), ("all", 2.0)):
                known |= reached_by(kind, level, chance, shift)
            for method, offset in OFFSET.items():
                shift = offset + noise * rng.normal()
                own = known | reached_by("chosen", level, chance, offset / 2)
                reached, random = level(shift, chance), level(0.0, chance)
                values = {
                    "balanced_accuracy": reached, "auroc": level(shift), "gain": reached - random,
                    "recovery": reached / level(2.0, chance),
                }  # fmt: skip
                arms = {
                    "random images": {"balanced_accuracy": random, "auroc": level(0.0)},
                    "all images": {"balanced_accuracy": level(2.0, chance), "auroc": level(2.0)},
                }
                found.append(Example(f"g{group}", f"d{group}", method, {}, own, values, arms))
    return found


def reached_by(kind, level, chance, shift):
    """What small networks reached on some kind of images."""
    return {f"{kind}.balanced_accuracy": level(shift, chance), f"{kind}.auroc": level(shift)}


def test_a_law_is_learned_and_beats_what_is_trivial():
    found = {(a.predictor, a.quantity): a for a in assess(law())}
    for quantity in QUANTITIES:
        best = found["indicator", quantity]
        # The law is in the random sample, so who sees only that has less to get wrong.
        others = [a for (p, q), a in found.items() if q == quantity and p != "indicator" and "random" not in p]
        assert best.mean_absolute_error < min(a.mean_absolute_error for a in others), quantity
        assert best.coverage >= 0.85
    assert found["indicator", "balanced_accuracy"].mean_absolute_error < 0.01
    assert found["indicator", "balanced_accuracy"].spearman > 0.98


def test_noise_is_not_explained():
    """Where nothing can be foretold, it says so by a wide interval and no explained variance."""
    rng = np.random.default_rng(1)
    noisy = [
        Example(
            e.group, e.data, e.method, {}, e.features, {q: float(rng.uniform(0.3, 0.9)) for q in QUANTITIES}, e.arms
        )
        for e in law()
    ]
    gain = next(a for a in assess(noisy) if (a.predictor, a.quantity) == ("indicator", "gain"))
    assert gain.r2 < 0.1
    p = Indicator(tuple(noisy)).predict(noisy[0].features, "dm")["gain"]
    assert p.high - p.low > 0.4


def test_a_group_is_never_on_both_sides(monkeypatch):
    examples, seen = law(groups=4), []
    whole = Model.fit.__func__

    def fit(cls, quantity, known, *rest):
        seen.append({e.group for e in known})
        return whole(cls, quantity, known, *rest)

    monkeypatch.setattr(Model, "fit", classmethod(fit))
    left_out(examples)
    assert sorted(map(len, seen)) == [3] * 8 and len({frozenset(s) for s in seen}) == 4


def test_order_and_repeats_of_examples_do_not_matter():
    examples = law(groups=4)
    first = Model.fit("balanced_accuracy", examples)(examples[0].features, "dm")
    turned = Model.fit("balanced_accuracy", examples[::-1])(examples[0].features, "dm")
    assert first == pytest.approx(turned, abs=1e-6)


def test_a_method_never_seen_is_the_mean_of_those_seen():
    examples = law(groups=5, noise=0.0)
    model = Model.fit("balanced_accuracy", examples)
    features = dict(examples[0].features)
    for metric in ("balanced_accuracy", "auroc"):  # random and all images are methods too
        features |= dict.fromkeys((f"random.{metric}", f"all.{metric}"), features[f"chosen.{metric}"])
    each = [model(features, m) for m in model.methods]
    assert model(features, "new") == pytest.approx(np.mean(each), abs=1e-6)


def test_intervals_hold_what_they_say():
    assert half_width(np.array([0.1, -0.5, 0.2]), "abc") == 0.5
    errors = np.random.default_rng(0).normal(size=1000)
    assert half_width(errors, list(map(str, range(1000)))) == pytest.approx(1.96, abs=0.15)
    # A hundred good predictions for one origin do not hide that another one is missed.
    assert half_width(np.array([0.0] * 100 + [1.0]), ["a"] * 100 + ["b"]) == 1.0
    for value in (0.3, 0.55, 0.97):
        assert from_above_chance(above_chance(value, 0.25), 0.25) == pytest.approx(value)
    assert from_above_chance(above_chance(0.1, 0.25), 0.25) > 0.25, "below chance is cut off"
    p = Indicator(tuple(law())).predict(law()[0].features, "dm")
    assert all(p[q].low <= p[q].mean <= p[q].high for q in QUANTITIES)
    assert p["auroc"].low > 0 and p["auroc"].high < 1


def test_too_few_origins_are_one_line():
    with pytest.raises(DataError, match="holds data of 2 origins.*at least 3"):
        Indicator(tuple(law(groups=2)))


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


def test_a_prediction_lies_within_its_interval_even_at_the_ends():
    examples = law()
    indicator = Indicator(tuple(examples))
    for value in (0.0, 1.0):
        ends = {f"{kind}.{metric}": value for kind in ("random", "all", "chosen") for metric in METRICS}
        for p in indicator.predict(examples[0].features | ends, "dm").values():
            assert p.low <= p.mean <= p.high


def foretold_of(recovery, gain, low):
    same = Prediction(0.5, 0.4, 0.6)
    return {
        "balanced_accuracy": same, "auroc": same, "recovery": Prediction(recovery, 0, 2),
        "gain": Prediction(gain, low, 1),
    }  # fmt: skip


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
def test_what_is_advised_follows_from_what_is_foretold(every, recovery, gain, low, code):
    own = {"classes": 2.0, "all.balanced_accuracy": every}
    told = _verdict(own, {"dm": foretold_of(recovery, gain, low)})
    assert told["code"] == code and told["method"] == "dm"
    assert ("also gained nothing" in told["words"]) == (code == "worth it" and low < 0)


def test_the_method_that_reaches_most_is_advised_on_and_random_images_are_none():
    better = {**foretold_of(0.95, 0.1, 0.05), "balanced_accuracy": Prediction(0.8, 0.7, 0.9)}
    best = {**foretold_of(1.0, 0.0, -0.1), "balanced_accuracy": Prediction(0.9, 0.8, 1.0)}
    of = {"random": best, "dm": foretold_of(0.92, 0.1, 0.05), "herding": better}
    assert _verdict({"classes": 2.0, "all.balanced_accuracy": 0.9}, of)["method"] == "herding"


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


def test_methods_that_store_smaller_images_are_foretold_by_their_bytes(database, monkeypatch, short):
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
    from medistill.prediction.indicator import Indicator

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
    from medistill.store import Store
    from medistill.study.report import all_tables

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


def test_origins_that_share_data_are_one(tmp_path):
    from medistill.prediction.examples import joined
    from studies import record

    runs = [
        record(identity="1", group="a", data_identity="x"), record(identity="2", group="b", data_identity="x"),
        record(identity="3", group="b", data_identity="y"), record(identity="4", group="c", data_identity="y"),
        record(identity="5", group="d", data_identity="z"),
    ]  # fmt: skip
    assert len({r.group for r in joined(runs)}) == 2


def test_recipes_are_not_mixed(tmp_path):
    from medistill.prediction.examples import read_examples
    from medistill.store import Store
    from studies import record

    for number in (1, 2):
        with Store(tmp_path / f"{number}.db", write=True) as store:
            asked = {"evaluate": {"recipe": {"width": number}, "nets": ["convnet"]}}
            store.record(record(identity=str(number), specification=asked, result=described({"a": 1})), [])
    with pytest.raises(DataError, match=r"2\.db: holds packages that were evaluated by another recipe"):
        read_examples([tmp_path / "1.db", tmp_path / "2.db"])


def test_only_what_is_learned_from_must_be_of_one_recipe(tmp_path):
    """A trial with another recipe, since replaced, does not spoil a database for ever."""
    from medistill.prediction.examples import learned_from
    from studies import record

    measured = described({"a": 1})
    old, new = (
        record(
            identity=str(n), finished=f"2026-0{n}-01", result=measured, specification={"evaluate": {"networks": n}}
        )
        for n in (1, 2)
    )
    moved = record(identity="3", kind="transfer", result=measured, specification={"site": {"entry": {"name": "b"}}})
    assert [r.identity for r in learned_from([old, new, moved])] == ["2"]


def test_random_images_with_labels_of_teachers_are_a_method_of_their_own():
    from studies import record

    plain = record(method="random")
    told = {"determined": {"distil": {"labels": {"teachers": 2}}}}
    assert plain.is_random and not record(method="random", specification=told).is_random
    assert not record(method="random", specification={"determined": {"distil": {"factor": 2}}}).is_random


def test_intervals_of_a_held_out_group_have_no_part_of_it(monkeypatch):
    """Neither what is predicted nor the errors that make its width come from models that saw the group."""
    examples = law(5)
    seen = []
    whole = Models.fit

    def fit(known, view=VIEW):
        seen.append({e.group for e in known})
        return whole(known, view)

    monkeypatch.setattr(Models, "fit", fit)
    found = predictions_without_two(examples)
    groups = {e.group for e in examples}
    assert all(len(groups - s) == 2 for s in seen) and len(seen) == len(groups) * (len(groups) - 1) / 2
    for out in groups:
        filled = [bool(p) for p in found[out]]
        assert filled == [e.group != out for e in examples]
    monkeypatch.setattr(Models, "fit", whole)
    one, other = sorted(groups)[:2]
    rest = Models.fit([e for e in examples if e.group not in (one, other)])
    index = next(i for i, e in enumerate(examples) if e.group == other)
    assert found[one][index] == rest(examples[index].features, examples[index].method)


def test_the_report_draws_what_is_foretold_against_what_was_measured(database, tmp_path):
    medistill.study_report(database, out=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    for title in (
        "Recovery by size",
        "The indicator on unseen origins",
        "Representativeness and what networks reach",
    ):
        assert title in page
    assert page.count("data:image/svg+xml") == 3
