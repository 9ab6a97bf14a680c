"""What an evaluation gives, typed: the same object in a manifest, in a report and behind ``--json``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from medistill.aliases import Json

ENOUGH = 0.90
"""Share of the full data's performance from which a package counts as standing in for them."""

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
ByMetric = dict[str, "Estimate"]


class Result(BaseModel):
    """Base of results; keys that a later release adds are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def as_json(self) -> Json:
        """As ``json`` writes it."""
        return self.model_dump(mode="json")


class Estimate(Result):
    """A figure with its 95 % interval; None where the test images do not define it.

    Args:
        mean: over networks.
        std: standard deviation over networks, of levels.
        ci95: over networks and test images.
    """

    mean: float | None
    std: float | None = None
    ci95: Interval | None = None

    def text(self, style: str = ".3f") -> str:
        """ "0.912 [0.890, 0.931]"; "-" where it is not defined."""
        if self.mean is None:
            return "-"
        if self.ci95 is None:
            return format(self.mean, style)
        low, high = (format(value, style) for value in self.ci95)
        return f"{self.mean:{style}} [{low}, {high}]"


class Scores(Result):
    """What one kind of network reached, on one place's test images.

    Args:
        arms: by arm and metric.
        recovery: share of the full data's score, by metric; None where it says nothing, and for errors.
        recovery_above_baseline: the same of what lies above the majority baseline.
        gain_over_random, gain_over_random_matched: of the package, paired; the second only where there is such an
            arm.
    """

    arms: dict[str, dict[str, Estimate]]
    recovery: dict[str, float | None]
    recovery_ci95: dict[str, Interval | None]
    recovery_above_baseline: dict[str, float | None]
    recovery_above_baseline_ci95: dict[str, Interval | None]
    gain_over_random: dict[str, Estimate]
    gain_over_random_matched: dict[str, Estimate] | None = None


class SiteScores(Scores):
    """Scores on another place's test images."""

    test_images: int


class Details(Result):
    """Of one arm: recall and further figures by output, confusion counts summed over networks, calibration error."""

    recall: list[float | None]
    by_class: dict[str, list[float | None]] = Field(default_factory=dict)
    confusion: list[list[int]] | None
    calibration_error: float


class EvaluatedData(Result):
    """On what was measured; without a fingerprint where that stands in a package whose data are private."""

    name: str
    fingerprint: str | None
    same_as_distilled: bool


class EvaluationResult(Scores):
    """Everything measured of a package.

    Args:
        primary: name of the metric that verdicts are about.
        architecture: kind of network that ``arms`` are of.
        transfer: scores of further kinds.
        majority_baseline: what always giving the most frequent answer achieves, by metric.
        images: that each arm trains on.
        test_images: how many.
        recipe, repeats, random_draws, seed: how.
    """

    task: str
    class_names: list[str]
    primary: str
    architecture: str
    transfer: dict[str, Scores] = Field(default_factory=dict)
    sites: dict[str, SiteScores] = Field(default_factory=dict)
    robustness: dict[str, float] | None = None
    majority_baseline: dict[str, float | None]
    details: dict[str, Details]
    curves: dict[str, list[list[list[float]]]] = Field(default_factory=dict)
    compression: dict[str, float] = Field(default_factory=dict)
    images: dict[str, int]
    test_images: int
    data: EvaluatedData
    recipe: dict[str, Any]
    repeats: int
    random_draws: int
    seed: int
    notes: list[str]
    package: dict[str, Any] = Field(default_factory=dict)
    cost: dict[str, Any] = Field(default_factory=dict)

    def without_exact_numbers(self) -> EvaluationResult:
        """Without what identifies the data or counts them: for packages that do not tell it."""
        data = self.data.model_copy(update={"fingerprint": None})
        return self.model_copy(update={"data": data, "notes": [], "compression": {}})

    def attached(self) -> EvaluationResult:
        """What goes into a package: everything that the same command gives again, so no seconds and no paths."""
        return self.model_copy(update={"sites": {}, "robustness": None, "curves": {}, "package": {}, "cost": {}})
