"""Measures written down as they are defined, image by image and pair by pair."""

from __future__ import annotations

from itertools import product


def auroc(scores, positive) -> float:
    """Share of pairs of a positive and a negative in which the positive scores higher, ties by half."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, n in product(
            [s for s, t in zip(scores, positive, strict=True) if t],
            [s for s, t in zip(scores, positive, strict=True) if not t],
        )
    ]
    return sum(wins) / len(wins)


def quadratic_kappa(truth, answer, grades: int) -> float:
    """1 − (weighted disagreement seen) / (weighted disagreement of independent raters), Cohen 1968."""
    n = len(truth)
    seen = sum((t - a) ** 2 for t, a in zip(truth, answer, strict=True)) / n
    by_chance = sum(
        (i - j) ** 2 * (sum(t == i for t in truth) / n) * (sum(a == j for a in answer) / n)
        for i, j in product(range(grades), repeat=2)
    )
    return 1 - seen / by_chance


def balanced_accuracy_of_finding(truth, answer) -> float:
    """Mean of sensitivity and specificity."""
    pairs = list(zip(truth, answer, strict=True))
    sensitivity = sum(t and a for t, a in pairs) / sum(bool(t) for t in truth)
    specificity = sum(not t and not a for t, a in pairs) / sum(not t for t in truth)
    return (sensitivity + specificity) / 2
