"""Packages of several sites pooled into one training set, beside each site's package and all their data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medistill.aliases import Json
from medistill.config import EvaluateConfig
from medistill.data.image import Normalisation
from medistill.data.preprocess import PreparedDataset, TensorSplit, channel_statistics
from medistill.evaluation import arms
from medistill.evaluation.arms import Arm, EvaluationData
from medistill.evaluation.cache import TrainedRun
from medistill.evaluation.intervals import Bootstrap, bootstrap_weights, gain
from medistill.evaluation.protocol import plain_counts
from medistill.keys import Key
from medistill.package.package import Package
from medistill.tasks.task import Task

FLIPS = ("none", "horizontal", "both")
"""From the most careful to the freest."""

POOLED, RANDOM, FULL = "pooled", "random pooled", "full pooled"


@dataclass(frozen=True)
class Site:
    """One hospital's part: its name, its package, its data prepared like the first one's, classes aligned."""

    name: str
    package: Package
    prepared: PreparedDataset


def compare_pooled(sites: list[Site], task: Task, config: EvaluateConfig) -> Json:
    """Train on the packages together and on each alone, and test on every site's test images.

    Args:
        sites: at least two; sizes, channels and classes agree.
        task: what targets mean, by the first site's names.
        config: recipe, repetitions, seed.

    Returns:
        ``sites.<name>`` with ``arms.<arm>.<metric>`` and ``gain_over.<arm>.<metric>`` of the pooled packages
        over every other arm, and ``images.<arm>``. Arms are "pooled", "alone: <name>", "random pooled" and
        "full pooled".
    """
    contest = _arms(sites, task, config)
    by_site = {}
    for site in sites:
        test = site.prepared.splits["test"]
        there = [Arm(name, sets, EvaluationData(test, None, how)) for name, sets, how in contest]
        # One site after the other: the first trains the networks, the others find them.
        runs = arms.train_all(there, task, config, lambda *_: None, keep_networks=True)
        by_site[site.name] = _scores(runs[config.architectures[0]], site.prepared, task, config)
    return {
        "architecture": config.architectures[0],
        "sites": by_site,
        "images": {name: len(sets[0]) for name, sets, _ in contest},
    }


def _arms(
    sites: list[Site], task: Task, config: EvaluateConfig
) -> list[tuple[str, tuple[TensorSplit, ...], Normalisation]]:
    """Name, training sets and normalisation of each arm; each is normalised by what it is trained on."""
    # Mirror images are made of all, so they must keep the class at every site.
    flips = min((site.package.manifest.image.flips for site in sites), key=FLIPS.index)
    parts = [site.package.data for site in sites]
    together, full = _joined(parts), _joined([site.prepared.train for site in sites])
    counts = np.sum([plain_counts(site.package) for site in sites], axis=0).tolist()
    key = Key(config.seed)
    draws = [arms.subset(full, task, counts, key.child("random", i)) for i in range(config.draws(sum(counts)))]
    mixed = Normalisation(*channel_statistics(full.pixels), flips, sites[0].package.manifest.image.bits)
    alone = []
    for site, part in zip(sites, parts, strict=True):
        normalisation = replace(site.package.preprocessing.normalisation, flips=flips)
        alone.append((f"alone: {site.name}", (part,) * config.repeats, normalisation))
    return [
        (POOLED, (together,) * config.repeats, mixed),
        *alone,
        (RANDOM, tuple(draws), mixed),
        (FULL, (full,) * config.repeats, mixed),
    ]


def _joined(parts: list[TensorSplit]) -> TensorSplit:
    soft = [part.soft_labels for part in parts if part.soft_labels is not None]
    return TensorSplit(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate(soft) if len(soft) == len(parts) else None,
    )


def _scores(runs: dict[str, list[TrainedRun]], prepared: PreparedDataset, task: Task, config: EvaluateConfig) -> Json:
    test = prepared.dataset.splits["test"]
    key = Key(config.seed).child("bootstrap")
    weights = bootstrap_weights(len(test), config.bootstrap, key, test.patients)
    measured = {
        arm: Bootstrap.of(task, [r.probabilities for r in trained], test.targets, weights, key.child(arm))
        for arm, trained in runs.items()
    }
    first, metrics = measured[POOLED], task.metric_names
    return {
        "arms": {arm: {m: e.as_json() for m, e in of.summaries().items()} for arm, of in measured.items()},
        "gain_over": {
            arm: {m: gain(first, of, m).as_json() for m in metrics} for arm, of in measured.items() if arm != POOLED
        },
        "test_images": len(test),
    }
