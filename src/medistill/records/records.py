"""Runs of a study: what each is, what it measured, and how what is kept of it reads.

The JSON of a run's specification and result is read here, wherever it is needed, and what earlier versions kept under
other names is brought to those of now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from medistill.aliases import Json
from medistill.files import canonical_json
from medistill.package.upgrade import upgraded_distil, upgraded_evaluate, upgraded_scores
from medistill.tasks.task import exclusive_kind


@dataclass(frozen=True)
class RunSpec:
    """What a run is, before it is done and after.

    Args:
        identity: hash of all that determines its result.
        study: the study's name.
        kind: "distilled", "transfer" (its networks tested at another site) or "pooled"; "features" while those
            of a run's data are computed anew, which is kept with that run.
        data, group: name and origin of what it trains on.
        data_identity: hash of their content, as varied.
        method: what tables call it.
        ipc, ratio: one of both.
        seed: of distilling.
        specification: what a worker needs to do it; as it is kept, sources are named without their folders.
    """

    identity: str
    study: str
    kind: str
    data: str
    group: str
    data_identity: str
    method: str
    ipc: int | None
    ratio: float | None
    seed: int
    specification: Json

    @property
    def size(self) -> str:
        """How many images were asked for, as tables write it: images per class, or the share of the images."""
        return str(self.ipc) if self.ipc is not None else f"{100 * (self.ratio or 0):g} %"

    @property
    def size_in_words(self) -> str:
        """How many images were asked for, in a sentence."""
        if self.ipc is None:
            return f"{self.size} of the images"
        return "1 image per class" if self.ipc == 1 else f"{self.ipc} images per class"

    @property
    def title(self) -> str:
        """Which run it is, in words."""
        where = f", tested at {self.site}" if self.site else ""
        return f"{self.data}{where}, {self.method}, {self.size_in_words}, seed {self.seed}"

    @property
    def site(self) -> str | None:
        """Where the networks of a transfer are tested."""
        return str(self.specification["site"]["entry"]["name"]) if self.kind == "transfer" else None

    @property
    def factor(self) -> int:
        """Images are stored at one in so many of their side."""
        return int(self.distil.get("factor", 1))

    @property
    def is_random(self) -> bool:
        """Whether these are plain random real images, whatever the method is called."""
        labelled = self.distil.get("labels", {}).get("teachers", 0) > 0
        return bool(self.specification["method"]["method"] == "random") and self.factor == 1 and not labelled

    @property
    def distil(self) -> Json:
        """How the package is distilled: ``method``, ``factor``, ``labels``, size and seed."""
        return dict(self.specification.get("determined", {}).get("distil", {}))


@dataclass(frozen=True)
class RunRecord(RunSpec):
    """One run as it is kept.

    Args:
        status: "done" or "failed".
        error: why it failed.
        starts: how often it was begun; more than once where its process was ended.
        seconds: it took.
        finished: when, ISO 8601 in UTC.
        machine: where, in words.
        medistill: version.
        result: what was measured; None where it failed.
        asked: when a study last asked for it, as ``finished``.
    """

    status: str
    error: str | None
    starts: int
    seconds: float
    finished: str
    machine: str
    medistill: str
    result: Json | None
    asked: str | None = None

    @property
    def measured(self) -> Json:
        """What was measured; empty where nothing was."""
        return self.result or {}

    @property
    def features(self) -> dict[str, float] | None:
        """What `predict` learns from; None where it was not computed."""
        return self.measured.get("features") or None

    @property
    def features_version(self) -> int | None:
        """Of the code that computed them."""
        return self.measured.get("features_version")

    @property
    def task(self) -> str:
        """What the labels mean; before there was a choice classes excluded each other."""
        classes = int((self.features or {}).get("classes", 0))
        return str(self.measured.get("task") or exclusive_kind(classes))

    @property
    def dimensions(self) -> int:
        """Of the images; before there was a choice they were pictures."""
        return int(self.measured.get("dimensions") or 2)

    @property
    def start(self) -> str:
        """What the package's first images were."""
        recorded = self.measured.get("start")
        # Before it was recorded, a method that could begin with anything else had a setting for it.
        return str(recorded or self.distil.get("method", {}).get("start", "real"))

    def value(self, quantity: str, metric: str) -> float | None:
        """A figure of the package's own networks: "level", "recovery" or "gain" over random images."""
        result = self.measured
        if quantity == "level":
            return self.level("distilled", metric)
        figure = result["recovery"][metric] if quantity == "recovery" else result["gain_over_random"][metric]["mean"]
        return None if figure is None else float(figure)

    def level(self, arm: str, metric: str) -> float | None:
        """Mean of a metric of an arm."""
        mean = self.measured["arms"][arm][metric]["mean"]
        return None if mean is None else float(mean)

    def interval(self, quantity: str, metric: str) -> list[float] | None:
        """The 95 % interval of :meth:`value`."""
        result = self.measured
        if quantity == "level":
            return result["arms"]["distilled"][metric]["ci95"]
        return (
            result["recovery_ci95"][metric] if quantity == "recovery" else result["gain_over_random"][metric]["ci95"]
        )

    @property
    def recipe(self) -> str:
        """By what levels can be compared: the recipe and network of its evaluation."""
        how = self.specification["evaluate"]
        return canonical_json([how["recipe"], how["architectures"][0]])


def current(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Of runs that tables would call the same, those of the data and configuration that were asked for last.

    A database keeps what was measured under another recipe or on an earlier version of the data; that must not be
    taken for another seed.
    """
    listed = list(runs)
    newest: dict[tuple[object, ...], tuple[str, str]] = {}
    for run in listed:
        key, configuration, asked = _place(run), _configuration(run), run.asked or run.finished
        if key not in newest or newest[key][0] < asked:
            newest[key] = (asked, configuration)
    return [run for run in listed if newest[_place(run)][1] == _configuration(run)]


def _place(run: RunRecord) -> tuple[object, ...]:
    return (run.kind, run.data, run.group, run.method, run.ipc, run.ratio, run.site)


def _configuration(run: RunRecord) -> str:
    """All that determines the result but the seed."""
    asked = run.specification
    determined = asked.get("determined", {})
    distil = {k: v for k, v in determined.get("distil", {}).items() if k != "seed"}
    site = {k: v for k, v in asked["site"].items() if k != "entry"} if "site" in asked else None
    return canonical_json([run.data_identity, site, asked.get("evaluate"), distil, determined.get("versions")])


def now() -> str:
    """The time as ``asked`` holds it, finer than seconds so that one study's asking lies after another's."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def upgraded_specification(specification: Json) -> Json:
    """A run's specification under the names of now."""
    fields = dict(specification)
    if "evaluate" in fields:
        fields["evaluate"] = upgraded_evaluate(fields["evaluate"])
    if "distil" in fields.get("determined", {}):
        fields["determined"] = {**fields["determined"], "distil": upgraded_distil(fields["determined"]["distil"])}
    return fields


def upgraded_run_result(result: Json) -> Json:
    """A run's result under the names of now."""
    return upgraded_scores(result)
