"""DD-Ranking's scores as Li et al., arXiv 2505.13300, write them."""

import math


def score(weighted: float) -> float:
    """From a weighted sum within −1 and 1 to 0 and 1."""
    return (math.exp(weighted) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
