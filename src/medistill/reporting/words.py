"""The verdict in words, decided by rules on the figures and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from medistill.data.checks import FEW_TESTED
from medistill.package.finding import Finding
from medistill.package.guarantee import guarantee_sentences
from medistill.package.manifest import GuaranteeSection
from medistill.package.results import ENOUGH, EvaluationResult
from medistill.tasks.task import Metric, Task, make_task

PARTIAL_RECOVERY = 0.5

LOST = 0.15
"""Recall that a class loses against full training before it is named."""

ARM_TITLES = {
    "distilled": "This package",
    "random": "Random real images, same number",
    "random_matched": "Random real images, same storage and soft labels",
    "full": "All training images",
    "full_balanced": "Training images, each class seen equally often",
}


def titles(result: EvaluationResult) -> dict[str, str]:
    """Titles of the arms that a result has, in the order of tables."""
    arm_titles = ARM_TITLES | {"random": f"Random real images, same {_measure(result)}"}
    return {arm: title for arm, title in arm_titles.items() if arm in result.arms}


def task_of(result: EvaluationResult) -> Task:
    """The task that was measured."""
    return make_task(result.task, result.class_names)


def _measure(result: EvaluationResult) -> str:
    """In what the package and random images are equal: their number, unless the package's are smaller."""
    compression = result.compression
    return "bytes" if compression["stored_images"] > compression["images"] else "number"


def verdict(
    result: EvaluationResult, real: bool, findings: Sequence[Finding], guarantee: GuaranteeSection | None = None
) -> list[str]:
    """Sentences that say what the package is worth, most important first.

    Judged on the task's primary metric: its recovery above the majority baseline, and whether the interval of the
    gain over random images lies above zero.
    """
    task = task_of(result)
    metric = task.metric(result.primary)
    sentences = []
    if not result.data.same_as_distilled:
        sentences.append(
            f"This was measured on {result.data.name}, which is not the data that the package was made from."
        )
    sentences.append(_worth(result, metric, real))
    sentences.append(_against_random(result, metric))
    if result.gain_over_random_matched is not None:
        sentences.append(_against_matched(result, metric))
    sentences += _losses(result)
    if real:
        sentences.append("It contains real patient images and falls under the same rules as the original.")
    sentences += [f"{finding.title}: {finding.explanation}" for finding in findings]
    if guarantee is not None:
        sentences += guarantee_sentences(guarantee)
    elif not real:
        measured = "" if findings else "What it gives away was not measured. "
        sentences.append(f"{measured}Without a privacy budget nothing is guaranteed.")
    return sentences


def _worth(result: EvaluationResult, metric: Metric, real: bool) -> str:
    plain, above = result.recovery[metric.name], result.recovery_above_baseline[metric.name]
    if above is None:
        return (
            "Full training itself is not surely better than guessing here, so nothing can be said about distilling: "
            "look at the data and labels first."
        )
    tested = result.test_images
    opening = (
        f"With {tested} test {'image' if tested == 1 else 'images'} nothing can be said of its worth"
        if tested < FEW_TESTED
        else "It can stand in for the data" if above >= ENOUGH
        else "It is a partial substitute" if above >= PARTIAL_RECOVERY
        else "It cannot stand in for the data"
    )  # fmt: skip
    what = "real" if real else "distilled"
    smaller = " stored smaller" if _measure(result) == "bytes" else ""
    same = result.data.same_as_distilled
    unit = "the pixels of" if smaller else "the number in"
    whole = "the original" if same and not smaller else f"{unit} {'the original' if same else result.data.name}"
    reached, full = (result.arms[arm][metric.name].mean for arm in ("distilled", "full"))
    return (
        f"{opening}: networks trained on {result.images['distilled']} {what} images{smaller} "
        f"({result.compression['images']:.1%} of {whole}) reach {reached:.3f} {metric.title} where the full data "
        f"reach {full:.3f}. That is {plain:.0%} of the score, and {above:.0%} of what lies above guessing."
    )


def _against_random(result: EvaluationResult, metric: Metric) -> str:
    equal, gain = _measure(result), result.gain_over_random[metric.name]
    if gain.mean is None or gain.ci95 is None:
        return f"Whether it is better than the same {equal} of random images the test images do not tell."
    low, high = gain.ci95
    difference = f"{gain.mean:+.3f} {metric.title}, 95 % interval {low:+.3f} to {high:+.3f}"
    if low > 0:
        return f"It is better than the same {equal} of random images: {difference}."
    if high < 0:
        return f"It is worse than the same {equal} of random images: {difference}. Do not use it."
    return (
        f"It was not shown to be better than the same {equal} of random images: {difference}. "
        "More images per class or more test images may decide it."
    )


def _against_matched(result: EvaluationResult, metric: Metric) -> str:
    assert result.gain_over_random_matched is not None
    gain = result.gain_over_random_matched[metric.name]
    opponent = "random images with the same storage and soft labels"
    if gain.mean is None or gain.ci95 is None:
        return f"Whether it is better than {opponent} the test images do not tell."
    low, high = gain.ci95
    opening = (
        "Its images are better than" if low > 0
        else "Its images are worse than" if high < 0
        else "Most of this may come from storage and labels: it was not shown to be better than"
    )  # fmt: skip
    return f"{opening} {opponent}: {gain.mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}."


def _losses(result: EvaluationResult) -> list[str]:
    pairs = zip(result.class_names, result.details["distilled"].recall, result.details["full"].recall, strict=True)
    weak = [
        (full - recall, name, recall)
        for name, recall, full in pairs
        if recall is not None and full is not None and recall < full - LOST
    ]
    if not weak:
        return []
    named = ", ".join(f"{name} ({recall:.0%})" for _, name, recall in sorted(weak, reverse=True)[:4])
    return [f"It loses most on: {named} of the images recognised."]
