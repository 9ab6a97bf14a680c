"""The indicator: learns a law that is there, sees no image it must not see, and says what it does not know."""

import numpy as np
import pytest

from medistill.errors import DataError
from medistill.prediction.assess import assess
from medistill.prediction.examples import joined, learned_from, read_examples
from medistill.prediction.indicator import (
    METRICS,
    QUANTITIES,
    VIEW,
    Example,
    Indicator,
    Model,
    Models,
    above_chance,
    from_above_chance,
    half_width,
    left_out,
    predictions_without_two,
)
from medistill.records.store import Store
from studies import described, law, record


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
    """Where nothing can be predicted, it says so by a wide interval and no explained variance."""
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


def test_the_order_of_examples_does_not_matter():
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


def test_a_prediction_lies_within_its_interval_even_at_the_ends():
    examples = law()
    indicator = Indicator(tuple(examples))
    for value in (0.0, 1.0):
        ends = {f"{kind}.{metric}": value for kind in ("random", "all", "chosen") for metric in METRICS}
        for p in indicator.predict(examples[0].features | ends, "dm").values():
            assert p.low <= p.mean <= p.high


def test_origins_that_share_data_are_one():
    runs = [
        record(identity="1", group="a", data_identity="x"), record(identity="2", group="b", data_identity="x"),
        record(identity="3", group="b", data_identity="y"), record(identity="4", group="c", data_identity="y"),
        record(identity="5", group="d", data_identity="z"),
    ]  # fmt: skip
    assert len({r.group for r in joined(runs)}) == 2


def test_recipes_are_not_mixed(tmp_path):
    for number in (1, 2):
        with Store(tmp_path / f"{number}.db", write=True) as store:
            asked = {"evaluate": {"recipe": {"width": number}, "architectures": ["convnet"]}}
            store.record(record(identity=str(number), specification=asked, result=described({"a": 1})), [])
    with pytest.raises(DataError, match=r"2\.db: holds packages that were evaluated by another recipe"):
        read_examples([tmp_path / "1.db", tmp_path / "2.db"])


def test_only_what_is_learned_from_must_be_of_one_recipe():
    """A trial with another recipe, since replaced, does not spoil a database for ever."""
    measured = described({"a": 1})
    old, new = (
        record(identity=str(n), finished=f"2026-0{n}-01", result=measured, specification={"evaluate": {"repeats": n}})
        for n in (1, 2)
    )
    moved = record(identity="3", kind="transfer", result=measured, specification={"site": {"entry": {"name": "b"}}})
    assert [r.identity for r in learned_from([old, new, moved])] == ["2"]


def test_random_images_with_labels_of_teachers_are_a_method_of_their_own():
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
