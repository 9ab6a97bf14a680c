"""Membership attacks: against theory, against chance, and on overfitted networks."""

from statistics import NormalDist

import numpy as np
import pytest

import medistill
from medistill.audits.attacks import (
    intervals_over_people,
    lira,
    most_vulnerable,
    of_people,
    relabelled,
    rmia,
    success,
    success_of_each,
)
from medistill.audits.audit import audits, populations
from medistill.audits.shadows import halves
from medistill.data.load import load
from medistill.data.preprocess import prepare
from medistill.errors import ConfigError
from medistill.keys import Key
from medistill.package.package import read_package

PHANTOM = "phantom:classes=3,images=90,size=16"
SMALL = {"method": {"name": "dm", "iterations": 3, "networks": 2, "filters": 8, "real_batch": 8}}


def signals(people=600, shadows=8, lead=0.0, seed=0):
    """Each person's own mean, noise, and so much more where they took part."""
    generator = np.random.default_rng(seed)
    took = halves(people, shadows, Key(seed))
    own = generator.normal(0, 3, (people, 1))
    return own + generator.normal(size=(people, shadows)) + lead * took, took


def test_everybody_is_in_half_of_the_shadows_and_in_one_of_each_pair():
    took = halves(31, 8, Key(0))
    assert (took.sum(axis=1) == 4).all() and (took[:, ::2] != took[:, 1::2]).all()
    assert set(took.sum(axis=0)) == {15, 16}


@pytest.mark.parametrize("lead", [0.5, 1.0, 2.0])
def test_with_many_shadows_lira_comes_near_to_the_best_test_there_is(lead):
    """Of two normal distributions a distance d apart: area Φ(d / √2), Neyman and Pearson."""
    values, took = signals(shadows=64, lead=lead)
    assert success(lira(values, took), took).auc == pytest.approx(NormalDist().cdf(lead / 2**0.5), abs=0.02)


@pytest.mark.parametrize("attack", [lira, lambda v, took: rmia(np.exp(v / 10), took)])
@pytest.mark.parametrize("shadows", [8, 16])
def test_where_nothing_leaks_no_attack_seems_to_succeed(attack, shadows):
    found = []
    for seed in range(8):
        values, took = signals(shadows=shadows, seed=seed)
        found.append(success(attack(values, took), took).auc)
    assert np.mean(found) == pytest.approx(0.5, abs=0.01)


def test_rmia_orders_images_as_its_definition_does():
    """Share of other images z whose ratio is smaller, Zarifzadeh et al., equation 2 with γ = 1."""
    generator = np.random.default_rng(0)
    probabilities, took = generator.uniform(0.01, 1, (40, 8)), halves(40, 8, Key(0))
    scores = rmia(probabilities, took)
    usual = probabilities[:, 2:].mean(axis=1)
    ratio = probabilities[:, 0] / usual
    by_definition = np.array([(own >= ratio).mean() for own in ratio])
    assert (np.argsort(np.argsort(by_definition)) == np.argsort(np.argsort(scores[:, 0]))).all()


def test_the_area_is_the_chance_that_a_member_scores_higher():
    """Mann and Whitney: over all pairs, ties count half."""
    generator = np.random.default_rng(1)
    scores, members = generator.integers(0, 20, (100, 3)).astype(float), generator.random((100, 3)) < 0.4
    member, other = scores[members][:, None], scores[~members][None]
    assert success(scores, members).auc == pytest.approx(((member > other) + 0.5 * (member == other)).mean())


def test_rates_at_few_false_alarms_are_read_off_the_curve():
    members = np.array([True] * 50 + [False] * 1000)
    scores = np.where(members, 1.0, 0.0)
    scores[:25] = 3.0
    scores[50] = 2.0  # one non-member above half of the members
    found = success(scores[:, None], members[:, None])
    assert found.rates == (1.0, 1.0), "a false alarm in a thousand is allowed"
    scores[51] = 2.0
    assert success(scores[:, None], members[:, None]).rates == (0.5, 1.0)


def test_intervals_hold_what_they_are_of():
    values, took = signals(lead=1.0)
    scores = lira(values, took)
    low, high = intervals_over_people(scores, took, 100, Key(0))["auc"]
    assert low < success(scores, took).auc < high and high - low < 0.06


def test_images_of_one_person_count_together():
    summed = of_people(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]), np.array([1, 0, 1]))
    assert summed.tolist() == [[10.0, 20.0], [101.0, 202.0]]


def test_one_person_in_a_hundred_who_can_be_found_is_found():
    values, took = signals(people=1000)
    values[:10] += 8.0 * took[:10]
    scores = lira(values, took)
    worst, rows = most_vulnerable(lambda part: lira(values[:, part], took[:, part]), took)
    assert success(scores, took).auc < 0.53, "which the average hides"
    assert set(rows) == set(range(10)) and worst.mean() > 0.95
    assert (success_of_each(scores, took)[:10] > 0.95).all()


def test_the_worst_of_people_about_whom_nothing_can_be_told_look_like_all():
    found = []
    for seed in range(10):
        values, took = signals(people=1000, seed=seed)
        worst, _ = most_vulnerable(lambda part, v=values, t=took: lira(v[:, part], t[:, part]), took)
        found.append(worst.mean())
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_membership_drawn_anew_keeps_pairs():
    took = halves(200, 8, Key(0))
    drawn = relabelled(took, Key(1))
    assert (drawn[:, ::2] != drawn[:, 1::2]).all() and 0.4 < (drawn == took).mean() < 0.6


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    out = tmp_path_factory.mktemp("membership") / "p"
    medistill.distill(PHANTOM, out=out, ipc=3, settings=SMALL)
    package = read_package(out)
    return package, *populations(prepare(load(PHANTOM)))


def membership(audited, **options):
    return audits()["membership"](**{"training_steps": 60, **options}).run(*audited, Key(0))


def test_the_attack_succeeds_on_overfitted_networks(audited):
    found = membership(audited)
    control = found.details["positive_control"]
    assert control["ci95"]["auc"][0] > 0.55 and control["auc"] > found.value
    assert set(found.details) >= {"lira on networks", "rmia on networks", "lira on images", "lira on features"}
    assert set(found.details) >= {"lira on random", "rmia on random", "by_class", "most_vulnerable"}
    assert "0.5 is guessing" in found.explanation


def test_without_an_attack_that_works_nothing_is_called_safe(audited):
    found = membership(audited, training_steps=1)
    assert found.verdict == "warn" and "show nothing" in found.explanation


def test_a_coreset_gives_its_people_away(audited, tmp_path):
    """Images are in the package or they are not: the people whose images it holds are found without fail."""
    medistill.distill(PHANTOM, out=tmp_path / "p", method="random", ipc=10)
    found = membership((read_package(tmp_path / "p"), *audited[1:]))
    assert found.details["strongest"] == "lira on images" and found.verdict == "fail"
    assert found.details["lira on images"]["tpr_0.01"] > 0.1


def test_an_audit_that_was_stopped_goes_on_from_what_was_kept(audited, monkeypatch):
    first = membership(audited)

    def never(*_args, **_kwargs):
        raise AssertionError("distilled again")

    monkeypatch.setattr("medistill.distil.loop.run", never)
    assert membership(audited) == first


def test_an_odd_number_of_shadows_is_refused():
    with pytest.raises(ConfigError, match="membership.shadows.*multiple of 2"):
        medistill.audit("nowhere", settings={"membership": {"shadows": 9}})
