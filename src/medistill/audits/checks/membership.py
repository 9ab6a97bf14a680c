"""Membership: can it be told from the package who took part?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medistill.audits.attacks import (
    RATES,
    Array,
    Attack,
    Took,
    intervals_over_people,
    lira,
    log_odds,
    most_vulnerable,
    of_people,
    relabelled,
    rmia,
    success,
    success_of_each,
)
from medistill.audits.audit import Audit, Population, register_audit
from medistill.audits.control import control_seconds, control_signals
from medistill.audits.shadows import Shadows, make_shadows, shadow_seconds
from medistill.keys import Key
from medistill.package.finding import Finding, Verdict
from medistill.package.package import Package

OWN = ("networks", "images", "features")
"""What of a package is attacked; other names are of the controls."""

DRAWS = 400
"""Bootstrap samples of an interval."""

CURVE = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""False-positive rates at which the curve is told, for a plot with logarithmic axes."""

KNOWN = 0.55
"""Area under the curve above which an attack tells members from others, if its whole interval lies there."""

OFTEN = 0.6
"""Success rate on the most vulnerable above which the check warns, if its whole interval lies there."""


@register_audit
class Membership(Audit):
    """Membership inference with shadow distillations, for people and for the most vulnerable of them.

    Attacks are LiRA (Carlini et al. 2022) and RMIA (Zarifzadeh et al. 2024) on the networks that a recipient trains,
    and LiRA on the package itself: the nearest image, and mean features. Each is also made on networks trained on as
    many random images, and on networks overfitted to few images, where it must succeed.
    """

    name = "membership"
    title = "Membership of people"
    reference = "medistill, docs/explanation/privacy.md"

    shadows: int = Field(
        8, ge=8, le=1024, multiple_of=2, description="distillations of random halves, an even number"
    )
    iterations: int = Field(100, ge=1, le=10_000_000, description="of each shadow's distillation, at most")
    training_steps: int = Field(200, ge=1, le=1_000_000, description="of each network that is trained")

    def seconds(self, package: Package, members: Population, key: Key) -> float:
        how = (self.shadows, self.iterations, self.training_steps, key)
        return shadow_seconds(package, members, *how) + control_seconds(package, members, self.training_steps)

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        how = (self.shadows, self.iterations, self.training_steps, key, self.progress)
        shadows = make_shadows(package, members, *how)
        took, attacks = shadows.took_part, attacks_on(shadows)
        took_people = shadows.people_took_part
        scores = {name: attack(slice(None), took) for name, attack in attacks.items()}
        details: dict[str, Any] = {"people": shadows.people, "people_known": members.patients is not None}
        for name, values in scores.items():
            details[name] = measured(values, took_people, key.child("bootstrap", name))
        strongest = max((name for name in scores if name.split(" on ")[1] in OWN), key=lambda n: details[n]["auc"])
        best, attack = details[strongest], attacks[strongest]
        details["strongest"] = strongest
        details["success_by_person"] = quantiles(success_of_each(scores[strongest], took_people))
        chance = relabelled(took_people, key.child("chance"))
        guessed = attack(slice(None), chance[shadows.person])
        details["success_by_person_by_chance"] = quantiles(success_of_each(guessed, chance))
        vulnerable, rows = most_vulnerable(lambda part: attack(part, took[:, part]), took_people)
        details["most_vulnerable"] = {
            "number": len(np.unique(rows)), "success": float(vulnerable.mean()),
            "ci95": bounds(vulnerable, key.child("most vulnerable")),
        }  # fmt: skip
        details["by_class"] = by_group(scores[strongest], took_people, classes_of(package, members, shadows))
        if members.sites is not None:
            details["by_site"] = by_group(scores[strongest], took_people, first_of(members.sites, shadows.person))
        control, belongs = control_signals(package, members, self.training_steps, key.child("control"), self.progress)
        details["positive_control"] = measured(lira(control, belongs), belongs, key.child("bootstrap control"))
        succeeds = details["positive_control"]["ci95"]["auc"][0] > KNOWN
        verdict = _verdict(best, details["most_vulnerable"]["ci95"], succeeds)
        return Finding(
            name=self.name, title=self.title, value=round(best["auc"], 4),
            interval=[round(v, 4) for v in best["ci95"]["auc"]], verdict=verdict,
            explanation=self._explanation(details, best, succeeds), reference=self.reference, details=details,
        )  # fmt: skip

    def _explanation(self, details: dict[str, Any], best: dict[str, Any], succeeds: bool) -> str:
        whose = "people" if details["people_known"] else "images, as whose they are is not known,"
        rates = " and ".join(f"{best[f'tpr_{rate:g}']:.1%} are found at {rate:.1%} false alarms" for rate in RATES)
        vulnerable = details["most_vulnerable"]
        control = details["positive_control"]["auc"]
        text = (
            f"Measured on {self.shadows} distillations of random halves of {details['people']:,} {whose} with at "
            f"most {self.iterations} steps: the strongest attack ({details['strongest']}) tells members from others "
            f"with an area under the curve of {best['auc']:.3f} (0.5 is guessing); {rates}. "
            f"On the {vulnerable['number']} most vulnerable its success rate is {vulnerable['success']:.0%} (50% is "
            f"guessing). On networks overfitted to few images it reaches {control:.3f}"
        )
        if not succeeds:
            return f"{text}, too little to show that it works here, so the other figures show nothing."
        return (
            f"{text}. More shadows make a stronger attack; that this one finds nobody does not show that nobody "
            "can be found."
        )


def attacks_on(shadows: Shadows) -> dict[str, Callable[[slice, Took], Array]]:
    """Attacks by name, "lira on networks" for instance: functions of some of the shadows, and of which images took
    part in these, that give scores (people, shadows).
    """

    def on(attack: Attack, signals: Array) -> Callable[[slice, Took], Array]:
        return lambda part, took: of_people(attack(signals[:, part], took), shadows.person)

    found: dict[str, Callable[[slice, Took], Array]] = {}
    for arm, probability in shadows.probability.items():
        where = "networks" if arm == "distilled" else arm
        found[f"lira on {where}"] = on(lira, log_odds(probability))
        found[f"rmia on {where}"] = on(rmia, probability)
    return found | {"lira on images": on(lira, shadows.nearest), "lira on features": on(lira, shadows.features)}


def measured(scores: Array, took: Took, key: Key) -> dict[str, Any]:
    """Area under the curve, true-positive rates, their intervals and the curve."""
    of_all = success(scores, took)
    at = np.interp(CURVE, of_all.curve[:, 0], of_all.curve[:, 1])
    return {
        "auc": of_all.auc,
        **{f"tpr_{rate:g}": value for rate, value in zip(RATES, of_all.rates, strict=True)},
        "ci95": intervals_over_people(scores, took, DRAWS, key),
        "curve": [[rate, float(value)] for rate, value in zip(CURVE, at, strict=True)],
    }


def quantiles(values: Array) -> dict[str, float]:
    """How success is distributed over people."""
    return {f"{q:g}%": float(np.percentile(values, q)) for q in (1, 10, 25, 50, 75, 90, 99)}


def bounds(values: Array, key: Key) -> list[float]:
    """95 % bootstrap interval of a mean."""
    drawn = key.numpy().integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def by_group(scores: Array, took: Took, groups: npt.NDArray[np.str_]) -> dict[str, dict[str, float]]:
    """Number of people and area under the curve within each group of people."""
    found = {}
    for group in np.unique(groups):
        rows = groups == group
        number, auc = int(rows.sum()), success(scores[rows], took[rows]).auc
        found[str(group)[:200] or "unknown"] = {"people": number, "auc": auc}
    return found


def classes_of(package: Package, members: Population, shadows: Shadows) -> npt.NDArray[np.str_]:
    """The first stratum of each person's first image."""
    membership = package.task.membership(members.targets)
    names = np.select(list(membership.T), list(package.task.strata), "none")
    return first_of(names, shadows.person)


def first_of(values: npt.NDArray[np.str_], person: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """What holds for each person's first image."""
    return np.asarray(values[np.unique(person, return_index=True)[1]])


def _verdict(best: dict[str, Any], vulnerable: Sequence[float], succeeds: bool) -> Verdict:
    """ "fail" where the attack surely finds one person in ten at a false alarm in a hundred, "warn" where it surely
    tells members from others, or the most vulnerable in over :data:`OFTEN` of pairs, or where it shows nothing.
    """
    if best["ci95"][f"tpr_{RATES[-1]:g}"][0] > 0.1:
        return "fail"
    known = best["ci95"]["auc"][0] > KNOWN or vulnerable[0] > OFTEN
    return "warn" if known or not succeeds else "pass"
