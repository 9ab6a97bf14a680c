"""How measured numbers and lists are written, the same on the terminal, the card and the page."""

from __future__ import annotations

from medistill.aliases import Json


def with_interval(summary: Json, style: str = ".3f") -> str:
    """ "0.912 [0.890, 0.931]"; "-" where the test images do not define the metric."""
    if summary["mean"] is None:
        return "-"
    if summary["ci95"] is None:
        return format(summary["mean"], style)
    low, high = (format(value, style) for value in summary["ci95"])
    return f"{summary['mean']:{style}} [{low}, {high}]"


def listed(words: list[str]) -> str:
    """Words as a list in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
