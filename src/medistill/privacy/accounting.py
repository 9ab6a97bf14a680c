"""From a guarantee to noise and back: the Gaussian mechanism, accounted for by dp-accounting.

A mechanism that adds to a sum, of which one person's part has at most the length S, Gaussian noise of standard
deviation σS in every coordinate is (ε, δ)-differentially private for every pair on the curve of its privacy loss
(Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014; Balle, Wang, "Improving the Gaussian
Mechanism for Differential Privacy", ICML 2018, theorem 8, which the tests compare it with).
"""

from __future__ import annotations

import math

from medistill.errors import ConfigError

RANGE = (0.01, 100.0)
"""ε that can be asked for: below, noise drowns everything; above, it guarantees nothing worth the name."""


def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
    """The least noise, as a multiple of the sensitivity, with which so many releases are (ε, δ)-private.

    Args:
        epsilon: ε, from 0.01 to 100.
        delta: δ, between 0 and 1.
        releases: of the same data with noise of their own; together they are one of √releases less noise.

    Raises:
        ConfigError: an ε outside the range.

    >>> round(noise_multiplier(1.0, 1e-5), 2)
    3.73
    """
    from dp_accounting.pld.common import DifferentialPrivacyParameters
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    if not RANGE[0] <= epsilon <= RANGE[1]:
        raise ConfigError(f"{epsilon:g}", where="--epsilon", allowed=f"{RANGE[0]:g} to {RANGE[1]:g}")
    asked = DifferentialPrivacyParameters(epsilon, delta)
    return float(GaussianPrivacyLoss.from_privacy_guarantee(asked).standard_deviation) * math.sqrt(releases)


def epsilon_of(multiplier: float, delta: float, releases: int = 1) -> float:
    """ε of so many releases with noise of that many times the sensitivity, at δ; 0 where δ alone covers it.

    >>> round(epsilon_of(3.7306, 1e-5), 3)
    1.0
    """
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
    from scipy.optimize import brentq

    loss = GaussianPrivacyLoss(multiplier / math.sqrt(releases))

    def excess(epsilon: float) -> float:
        return float(loss.get_delta_for_epsilon(epsilon)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def delta_of(multiplier: float, epsilon: float) -> float:
    """δ of one release with noise of that many times the sensitivity, at ε (Balle, Wang, ICML 2018, theorem 8).

    >>> round(delta_of(3.7306, 1.0) * 1e5, 2)
    1.0
    """
    from scipy.special import log_ndtr, ndtr

    # Not by dp-accounting, as whoever reads a package would wait seconds for it to be loaded.
    a, b = 1 / (2 * multiplier), epsilon * multiplier
    return float(ndtr(a - b) - math.exp(epsilon + log_ndtr(-a - b)))


def most_correct(multiplier: float) -> float:
    """How often anybody at most is right who guesses whether a person took part, where both are equally likely.

    Φ(1 / 2σ), with all else known to the one who guesses: the noisy sum lies around one of two points whose distance
    is at most 1/σ standard deviations (Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022).

    >>> round(most_correct(3.7306), 3)
    0.553
    """
    from scipy.special import ndtr

    return float(ndtr(0.5 / multiplier))


def most_found(multiplier: float, false_positive_rate: float) -> float:
    """Share of those who took part that anybody at most finds at that rate of false alarms, Φ(Φ⁻¹(rate) + 1 / σ).

    >>> round(most_found(3.7306, 0.01), 3)
    0.02
    """
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(false_positive_rate) + 1 / multiplier))
