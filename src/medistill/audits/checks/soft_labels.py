"""Soft labels: what they alone give away of whom the teachers were trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from medistill.audits.attacks import intervals_over_people, lira, log_odds, of_people, success
from medistill.audits.audit import Audit, NotMeasuredError, Population, register_audit
from medistill.audits.shadows import (
    Networks,
    halves,
    halves_of,
    numbered_people,
    shadow_recipe,
)
from medistill.evaluation.duration import Pace, effort
from medistill.evaluation.teachers import restored
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.package import Package

TEMPERATURES = (1.0, 4.0)
AGES = (0.25, 1.0)
"""Of the teachers' training steps."""

DRAWS, KNOWN = 200, 0.55


@register_audit
class SoftLabels(Audit):
    """Membership inference from labels alone: the same images, labelled by teachers trained on random halves.

    The images are the package's own, so nothing but the labels differs between shadows; a network is trained on
    them and attacked by LiRA. Labels are measured at several temperatures and ages of the teacher: both are known to
    change what a label gives away.
    """

    name = "soft_labels"
    title = "What soft labels alone give away"
    reference = "medistill, docs/explanation/privacy.md"

    shadows: int = Field(4, ge=4, le=1024, multiple_of=2, description="teachers on random halves, an even number")
    training_steps: int = Field(200, ge=4, le=1_000_000, description="of each network that is trained")

    def seconds(self, package: Package, members: Population, key: Key) -> float:
        labels, everyone = package.manifest.label_config, members.split
        if not labels.teachers:
            return 0.0
        pace, total = Pace(everyone, package.task, package.preprocessing.normalisation, labels.recipe), 0.0
        for age in AGES:
            recipe = shadow_recipe(package, max(1, round(age * self.training_steps)))
            total += pace.spread([effort(recipe, len(everyone) // 2)] * self.shadows, len(package))
        students = self.shadows * len(AGES) * len(TEMPERATURES)
        own = effort(shadow_recipe(package, self.training_steps), len(package))
        return total + pace.spread([own] * students, len(everyone))

    def run(self, package: Package, members: Population, non_members: Population, key: Key) -> Finding:
        labels = package.manifest.label_config
        if not labels.teachers:
            raise NotMeasuredError("no teacher labelled the images")
        task, person, everyone = package.task, numbered_people(members), members.split
        people = halves(int(person.max()) + 1, self.shadows, key)
        parts, images = halves_of(everyone, people[person]), package.data.with_soft_labels(None)
        seed = key.integer() % 2**31
        students = Networks(package, shadow_recipe(package, self.training_steps), seed, self.progress)
        details: dict[str, Any] = {}
        for age in AGES:
            teachers = replace(students, recipe=shadow_recipe(package, max(1, round(age * self.training_steps))))
            answers = teachers.teachers_answers(parts, [images] * len(parts))
            for temperature in TEMPERATURES:
                soft = [restored(task, task.sharpened(answer, temperature)) for answer in answers]
                sets = [images.with_soft_labels(own) for own in soft]
                right = students.likelihoods("training networks on their labels", sets, everyone)
                scores = of_people(lira(log_odds(right), people[person]), person)
                details[f"temperature {temperature:g}, {age:.0%} of the teacher's steps"] = {
                    "auc": success(scores, people).auc,
                    "ci95": intervals_over_people(scores, people, DRAWS, key.child("bootstrap"))["auc"],
                }
        name, worst = max(details.items(), key=lambda item: item[1]["auc"])
        return Finding(
            name=self.name, title=self.title, value=round(worst["auc"], 4), interval=worst["ci95"],
            verdict="warn" if worst["ci95"][0] > KNOWN else "pass",
            explanation=(
                f"The package's images with labels of {self.shadows} teachers, each trained on a random half of the "
                f"people: at most ({name}) members are told from others with an area under the curve of "
                f"{worst['auc']:.3f} (0.5 is guessing). The package has temperature {labels.temperature:g}."
            ),
            reference=self.reference, details=details,
        )  # fmt: skip
