"""Packages of several sites pooled into one training set, beside each site's package and all their data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medistill.config import EvaluateConfig
from medistill.data.preprocess import Part, Prepared, channel_statistics
from medistill.evaluation import arms
from medistill.evaluation.arms import Arm, Exam
from medistill.evaluation.cache import Run
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain
from medistill.evaluation.metrics import METRICS
from medistill.evaluation.protocol import plain_counts
from medistill.keys import Key
from medistill.nets.training import Statistics
from medistill.package.package import Package
from medistill.types import Json

FLIPS = ("none", "horizontal", "both")
"""From the most careful to the freest."""

POOLED, RANDOM, FULL = "pooled", "random pooled", "full pooled"


@dataclass(frozen=True)
class Site:
    """One hospital's part: its name, its package, its data prepared like the first one's, classes aligned."""

    name: str
    package: Package
    prepared: Prepared


def compare_pooled(sites: list[Site], classes: int, config: EvaluateConfig) -> Json:
    """Train on the packages together and on each alone, and test on every site's test images.

    Args:
        sites: at least two; sizes, channels and classes agree.
        classes: number of classes.
        config: recipe, repetitions, seed.

    Returns:
        ``sites.<name>`` with ``arms.<arm>.<metric>`` and ``gain_over.<arm>.<metric>`` of the pooled packages
        over every other arm, and ``images.<arm>``. Arms are "pooled", "alone: <name>", "random pooled" and
        "full pooled".
    """
    contest = _arms(sites, config)
    found = {}
    for site in sites:
        exams = [(arm, sets, Exam(site.prepared.parts["test"], None, how)) for arm, sets, how in contest]
        there = [Arm(name, sets, exam) for name, sets, exam in exams]
        # One site after the other: the first trains the networks, the others find them.
        runs = arms.train_all(there, classes, config, lambda *_: None, keep_networks=True)
        found[site.name] = _scores(runs[config.nets[0]], site.prepared, config)
    return {"net": config.nets[0], "sites": found, "images": {name: len(sets[0]) for name, sets, _ in contest}}


def _arms(sites: list[Site], config: EvaluateConfig) -> list[tuple[str, tuple[Part, ...], Statistics]]:
    """Name, training sets and normalisation of each arm; each is normalised by what it is trained on."""
    # Mirror images are made of all, so they must keep the class at every site.
    flips = min((site.package.manifest["flips"] for site in sites), key=FLIPS.index)
    parts = [site.package.part for site in sites]
    together, full = _joined(parts), _joined([site.prepared.train for site in sites])
    counts = np.sum([plain_counts(site.package) for site in sites], axis=0).tolist()
    key = Key(config.seed)
    draws = [arms.subset(full, counts, key.child("random", i)) for i in range(config.draws(sum(counts)))]
    mixed = Statistics(*channel_statistics(full.pixels), flips)
    alone = []
    for site, part in zip(sites, parts, strict=True):
        own = site.package.preprocessing
        alone.append((f"alone: {site.name}", (part,) * config.networks, Statistics(own.mean, own.std, flips)))
    return [
        (POOLED, (together,) * config.networks, mixed),
        *alone,
        (RANDOM, tuple(draws), mixed),
        (FULL, (full,) * config.networks, mixed),
    ]


def _joined(parts: list[Part]) -> Part:
    soft = [part.soft_labels for part in parts if part.soft_labels is not None]
    return Part(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(soft) if len(soft) == len(parts) else None,
    )


def _scores(runs: dict[str, list[Run]], prepared: Prepared, config: EvaluateConfig) -> Json:
    test = prepared.dataset.splits["test"]
    key = Key(config.seed).child("bootstrap")
    weights = bootstrap_weights(len(test), config.bootstrap, key, test.patients)
    measured = {
        arm: Bootstrap.of([r.probabilities for r in each], test.labels, weights, key.child(arm))
        for arm, each in runs.items()
    }
    first = measured[POOLED]
    return {
        "arms": {arm: {m: of.summary(m) for m in METRICS} for arm, of in measured.items()},
        "gain_over": {arm: {m: gain(first, of, m) for m in METRICS} for arm, of in measured.items() if arm != POOLED},
        "test_images": len(test),
    }
