"""A run's result as single figures, one a row, for tables, notebooks and spreadsheets."""

from __future__ import annotations

from typing import Any

from medistill.aliases import Json
from medistill.records.store import Figure
from medistill.tasks.task import tasks


def figures_of(result: Json) -> list[Figure]:
    """Every figure of a result.

    Quantities are ``level`` and ``gain over`` (by arm), ``recovery``, ``recovery above baseline``, ``majority
    baseline``, ``robustness``, ``representativeness``, ``validation``, ``cost`` and ``size``. The site is empty for
    the data's own test images.
    """
    architecture = str(result.get("architecture", "convnet"))
    rows: list[Figure] = []
    if "arms" in result:
        rows += _scores("", architecture, result)
    for net, scores in result.get("transfer", {}).items():
        rows += _scores("", net, scores)
    for site, scores in result.get("sites", {}).items():
        rows += _scores(site, architecture, scores)
    rows += [
        _plain("", architecture, "majority baseline", m, v) for m, v in result.get("majority_baseline", {}).items()
    ]
    for quantity in ("robustness", "representativeness"):
        rows += [
            _plain("", architecture, quantity, name, value) for name, value in (result.get(quantity) or {}).items()
        ]
    if result.get("validation") is not None:
        task = tasks().get(result.get("task", "multi-class"))  # perhaps of a package that is not installed here
        metric = "primary" if task is None else task.primary
        rows.append(_plain("", architecture, "validation", metric, result["validation"]))
    rows += [_plain("", "", "cost", name, result["cost"][name]) for name in ("seconds", "peak_memory_mb")]
    sizes = {"bytes": result["bytes"], **{f"share of {k}": v for k, v in result.get("compression", {}).items()}}
    rows += [_plain("", "", "size", name, value) for name, value in sizes.items()]
    return rows


def _plain(site: str, net: str, quantity: str, name: str, value: float | None) -> Figure:
    return (site, net, quantity, "", name, value, None, None)


def _scores(site: str, net: str, scores: Json) -> list[Figure]:
    rows = []
    for arm, by_metric in scores["arms"].items():
        rows += [_with_interval(site, net, "level", arm, m, v["mean"], v["ci95"]) for m, v in by_metric.items()]
    gains = {
        "random": scores.get("gain_over_random"),
        "random_matched": scores.get("gain_over_random_matched"),
        **scores.get("gain_over", {}),
    }
    for arm, by_metric in gains.items():
        for m, v in (by_metric or {}).items():
            rows.append(_with_interval(site, net, "gain over", arm, m, v["mean"], v["ci95"]))
    for name in ("recovery", "recovery_above_baseline"):
        for m, mean in scores.get(name, {}).items():
            interval = scores[f"{name}_ci95"][m]
            rows.append(_with_interval(site, net, name.replace("_", " "), "distilled", m, mean, interval))
    return rows


def _with_interval(
    site: str, net: str, quantity: str, arm: str, metric: str, mean: float | None, interval: Any
) -> Figure:
    low, high = interval or (None, None)
    return (site, net, quantity, arm, metric, mean, low, high)
