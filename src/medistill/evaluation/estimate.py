"""How long a comparison will take on this machine, told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medistill.config import EvaluateConfig, LabelConfig
from medistill.data.preprocess import PreparedDataset
from medistill.evaluation.arms import MATCHED, Arm, jobs_of
from medistill.evaluation.cache import read_run
from medistill.evaluation.duration import Pace
from medistill.evaluation.jobs import Splits, is_kept
from medistill.evaluation.teachers import label_seconds


def comparison_seconds(
    prepared: PreparedDataset,
    contest: Sequence[Arm],
    unlabelled: Sequence[int],
    labels: LabelConfig,
    seed: int,
    config: EvaluateConfig,
) -> float:
    """Seconds to train what the cache does not have, and to ask it; 0 where it has all.

    Args:
        prepared: the data set.
        contest: the arms.
        unlabelled: images of each set of one more arm, which must be labelled first and is not in the cache.
        labels: how they are.
        seed: of the teachers.
        config: recipe, architectures, and whether there are robust scores, for which more is trained.
    """
    train, task = prepared.train, prepared.task
    asked = next(arm.asked for arm in contest if arm.name == "random")
    splits: Splits = {}

    def missing(arms: Sequence[Arm], how: EvaluateConfig, architecture: str) -> list[int]:
        jobs = [job for arm in arms for job in jobs_of(arm, task, how, splits, architecture)]
        return [len(splits[job.train]) for job in jobs if read_run(job.identity) is None and not is_kept(job)]

    seconds, first = 0.0, config.architectures[0]
    for architecture in config.architectures:
        trained = [arm for arm in contest if architecture == first or not arm.first_only]
        sizes = [*missing(trained, config, architecture), *unlabelled]
        if architecture == first and config.robust_scores:
            by_name = {arm.name: arm for arm in contest}
            package, opponent = by_name["distilled"], by_name.get(MATCHED, by_name["random"])
            bare = config.model_copy(update={"recipe": config.recipe.model_copy(update={"augment": False})})
            plain = replace(package, sets=tuple(data.with_soft_labels(None) for data in package.sets))
            sizes += missing([package], bare, first) + missing([plain], config, first)
            sizes += unlabelled or missing([opponent], bare, first)
        if sizes:
            pace = Pace(train, task, asked.normalisation, config.recipe, architecture)
            seconds += pace.seconds(sizes, len(asked.test))
    if unlabelled and labels.teachers:
        pace = Pace(train, task, asked.normalisation, labels.recipe)
        seconds += label_seconds(pace, train, unlabelled, task, asked.normalisation, labels, seed)
    return seconds
