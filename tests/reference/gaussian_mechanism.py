"""The Gaussian mechanism by its formula, and what attacks on it prove; nothing of medistill or dp-accounting."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import beta, norm


def delta_of(sigma: float, epsilon: float) -> float:
    """δ of noise σ at sensitivity 1 (Balle, Wang, ICML 2018, theorem 8)."""
    a, b = 1 / (2 * sigma), epsilon * sigma
    return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b))


def epsilon_of(sigma: float, delta: float) -> float:
    """ε of noise σ at sensitivity 1, by bisection."""
    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(sigma, middle) > delta else (low, middle)
    return high


def proved_epsilon(without: np.ndarray, with_: np.ndarray, delta: float, confidence: float = 0.999) -> float:
    """Lower bound on ε from a statistic of many releases without and with somebody.

    For Gaussian noise both are one distribution, shifted by μ = 1 / σ of its deviations; the bound on μ follows from
    Clopper-Pearson bounds on both error rates (Nasr et al., "Tight Auditing of Differentially Private Machine
    Learning", USENIX Security 2023, section 4.2). The threshold lies between the two, as of a known statistic.
    """
    threshold = (np.median(without) + np.median(with_)) / 2
    alpha = (1 - confidence) / 2

    def most(errors: int, trials: int) -> float:
        return float(beta.ppf(1 - alpha, errors + 1, trials - errors)) if errors < trials else 1.0

    false_positives = most(int((without > threshold).sum()), len(without))
    false_negatives = most(int((with_ <= threshold).sum()), len(with_))
    mu = norm.ppf(1 - false_negatives) - norm.ppf(false_positives)
    return 0.0 if mu <= 0 else epsilon_of(1 / mu, delta)
