"""Membership inference: who took part, told from what shadow distillations say of each image.

Shadows come in pairs: one is made from a random half of the people, the next from the other half, so of each person
it is known which shadows they took part in. Each shadow in turn is the target, and those of other pairs are the
references: everybody took part in half of these, whether in the target or not, so where nothing can be told no attack
seems to succeed. Arrays are (people or images, shadows).

Sources: Carlini et al., "Membership Inference Attacks From First Principles" (LiRA), IEEE S&P 2022,
doi:10.1109/SP46214.2022.9833649; Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks" (RMIA),
ICML 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medistill.keys import Key

Array = npt.NDArray[np.float64]
Took = npt.NDArray[np.bool_]

RATES = (0.001, 0.01)
"""False-positive rates at which true-positive rates are told."""

VULNERABLE = 0.01
"""Share of people who are told of as the most vulnerable."""

Attack = Callable[[Array, Took], Array]
"""From signals and who took part, both (images, shadows), to scores (images, shadows): higher for members."""


def lira(signals: Array, took_part: Took) -> Array:
    """Likelihood ratios: how much likelier a target's signal is among references with the image than among those
    without.

    Both are taken as normal with means of the image's own and one standard deviation of all images, as Carlini et
    al. (section VI-B) do where there are few shadows.
    """
    scores = np.empty_like(signals)
    for target, others in _targets(signals):
        values, inside = signals[:, others], took_part[:, others]
        with_it, without = _mean(values, inside), _mean(values, ~inside)
        spread = values - np.where(inside, with_it[:, None], without[:, None])
        # Where the only reference with an image and the only one without it leave no spread, any will do.
        degrees = spread.size - 2 * len(spread)
        variance = max((spread**2).sum() / degrees if degrees else signals.var(), 1e-12)
        here = signals[:, target]
        scores[:, target] = ((here - without) ** 2 - (here - with_it) ** 2) / (2 * variance)
    return scores


def log_odds(probability: Array) -> Array:
    """Logarithm of p over 1 - p, in which confidence is about normal (Carlini et al., section IV-C)."""
    p = probability.clip(1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p))


def rmia(probabilities: Array, took_part: Took) -> Array:
    """Logarithm of an image's probability under the target over its mean under the references.

    Among images z of the population, RMIA's score is the share whose own ratio is smaller (equation 2, γ = 1): it
    rises with this ratio, so both order people alike.
    """
    scores = np.empty_like(probabilities)
    for target, others in _targets(probabilities):
        usual = probabilities[:, others].mean(axis=1)
        scores[:, target] = np.log(probabilities[:, target].clip(1e-12)) - np.log(usual.clip(1e-12))
    return scores


def _targets(signals: Array) -> Iterator[tuple[int, Took]]:
    """Each target, and which shadows are its references."""
    pair = np.arange(signals.shape[1]) // 2
    for target in range(signals.shape[1]):
        yield target, np.asarray(pair != pair[target])


def _mean(values: Array, chosen: Took) -> Array:
    """Row means over chosen columns, of which every row has some."""
    return np.asarray((values * chosen).sum(axis=1) / chosen.sum(axis=1))


def of_people(scores: Array, person: npt.NDArray[np.int64]) -> Array:
    """Sums over each person's images, (people, shadows): images of one person take part together."""
    summed = np.zeros((int(person.max()) + 1, scores.shape[1]))
    np.add.at(summed, person, scores)
    return summed


@dataclass(frozen=True)
class Success:
    """How well an attack tells members from others.

    Args:
        auc: area under the curve, 0.5 for guessing.
        rates: true-positive rate at each of :data:`RATES`.
        curve: (points, 2) false- and true-positive rates, from 0 to 1.
    """

    auc: float
    rates: tuple[float, ...]
    curve: Array


def success(scores: Array, took_part: Took) -> Success:
    """Of all targets together."""
    from sklearn.metrics import auc, roc_curve  # every distillation loads the checks, few need this

    false, true, _ = roc_curve(took_part.ravel(), scores.ravel(), drop_intermediate=False)
    rates = tuple(float(true[np.searchsorted(false, rate, side="right") - 1]) for rate in RATES)
    return Success(float(auc(false, true)), rates, np.stack([false, true], axis=1))


def intervals_over_people(scores: Array, took_part: Took, draws: int, key: Key) -> dict[str, list[float]]:
    """95 % bootstrap intervals over people of ``auc`` and of the rates, ``tpr_0.001`` for instance."""
    generator = key.numpy()
    found = []
    for _ in range(draws):
        rows = generator.integers(0, len(scores), len(scores))
        drawn = success(scores[rows], took_part[rows])
        found.append((drawn.auc, *drawn.rates))
    low, high = np.percentile(np.array(found), [2.5, 97.5], axis=0)
    names = ("auc", *(f"tpr_{rate:g}" for rate in RATES))
    return {name: [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}


def success_of_each(scores: Array, took_part: Took) -> Array:
    """The attack's success rate on each person: the share of pairs of shadows of which it names the one with them,
    (people,).

    The two of a pair have the same references. Ties count half; 0.5 is guessing. With s shadows there are s / 2
    pairs, so one person's figure is coarse.
    """
    scores = scores - np.median(scores, axis=0)
    with_them = np.where(took_part[:, ::2], scores[:, ::2], scores[:, 1::2])
    without = np.where(took_part[:, ::2], scores[:, 1::2], scores[:, ::2])
    return np.asarray((with_them > without).mean(axis=1) + 0.5 * (with_them == without).mean(axis=1))


def most_vulnerable(
    attack: Callable[[slice], Array], took_part: Took, share: float = VULNERABLE
) -> tuple[Array, npt.NDArray[np.int64]]:
    """The attack's success rate on the most vulnerable people, and who they are.

    The most successful of many attacks look good by chance. So people are chosen by one half of the shadows and
    attacked on the other, and the other way round; the two halves have no reference in common.

    Args:
        attack: scores (people, shadows) from an attack on these shadows alone.
        took_part: (people, shadows).
        share: of people, at least one.

    Returns:
        Success rate on each chosen person, on shadows that did not choose them, (2 · chosen,), and their rows.
    """
    middle = took_part.shape[1] // 4 * 2
    parts = [slice(0, middle), slice(middle, None)]
    number = max(1, round(share * len(took_part)))
    scores = [attack(part) for part in parts]
    found, rows = [], []
    for choosing, measuring in ((0, 1), (1, 0)):
        took = took_part[:, parts[choosing]]
        lead = _mean(scores[choosing], took) - _mean(scores[choosing], ~took)
        chosen = np.argsort(-lead, kind="stable")[:number]
        found.append(success_of_each(scores[measuring], took_part[:, parts[measuring]])[chosen])
        rows.append(chosen)
    return np.concatenate(found), np.concatenate(rows)


def relabelled(took_part: Took, key: Key) -> Took:
    """Who took part, drawn anew for each person and pair of shadows: what an attack seems to find by chance."""
    pairs = took_part.shape[1] // 2
    swapped = key.numpy().integers(0, 2, (len(took_part), pairs)).astype(bool)
    return np.asarray(took_part ^ np.repeat(swapped, 2, axis=1))
