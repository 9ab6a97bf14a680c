"""The manifest, format version 2: what a package is, as one typed object that everything reads from.

A package comes from strangers, so nothing in it is taken on trust: what is validated here is what is used.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from medistill.aliases import Json
from medistill.config import DataConfig, LabelConfig
from medistill.data.preprocess import Preprocessing
from medistill.errors import ConfigError
from medistill.package.finding import Finding, Word
from medistill.package.image_section import ImageSection, Intensity, Name, Section
from medistill.package.results import EvaluationResult
from medistill.privacy.accounting import delta_of
from medistill.tasks.task import Task, make_task, tasks

FORMAT: Literal["medistill-package"] = "medistill-package"
FORMAT_VERSION = 2
LARGEST_COUNT = 10_000_000
"""Images and classes that are believed at most."""


def _safe_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/" or set(name) & set("\\:\0"):
        raise ValueError(f"'{name}' is no path below the package")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Folder = Annotated[str, Field(pattern=r"^[0-9]+(_[a-z0-9-]+)?$")]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]


class TaskSection(Section):
    """What labels mean.

    Args:
        kind: of a task.
        class_names: of its outputs: classes, grades in their order, or findings.
    """

    kind: Name
    class_names: Annotated[list[Name], Field(min_length=1, max_length=65535)]

    @model_validator(mode="after")
    def _each_once(self) -> TaskSection:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("a class twice")
        return self


class ImagesSection(Section):
    """How many images there are of each stratum, in order, and where."""

    count: Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
    per_stratum: list[Count]
    folders: list[Folder]
    labels: Literal["hard", "soft"]


class MethodSection(Section):
    """What made the images.

    Args:
        settings: its hyperparameters; None is automatic.
        optimiser: what moved the images, as it was; None of a method that learns nothing.
        steps: that were taken.
    """

    name: Name
    title: str
    kind: Literal["distillation", "coreset"]
    version: int
    bibtex: str
    settings: dict[str, Any] = Field(default_factory=dict)
    optimiser: dict[str, Any] | None = None
    steps: Count | None = None


Positive = Annotated[float, Field(gt=0, le=1e12)]


class GuaranteeSection(Section):
    """Differential privacy of the images and their labels: all that is needed to check it.

    Args:
        epsilon, delta: what is guaranteed.
        unit: whose presence is hidden: neighbouring training sets differ by all that one of them holds.
        mechanism: what noise is added.
        noise_multiplier: its standard deviation, as a multiple of the sensitivity.
        sensitivity: how far one unit can move what is released, in units of the clip.
        clip: longest embedding that counts in full.
        numbers: how many were released, with noise of their own each.
        centre_share: part of the budget that paid for the mean of all units, from which the sums of classes are
            measured; the noise of either is ``noise_multiplier`` over the root of its part.
        centre_clip: longest embedding that counts in full in that mean, where there is one.
        releases: how often real images were asked.
        public: what is taken to be known to everybody, and so not covered.
        outside: what else in the package was computed from real images, without noise, as somebody asked for it.
    """

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["image", "patient"]
    mechanism: Literal["Gaussian"] = "Gaussian"
    noise_multiplier: Positive
    sensitivity: Positive
    clip: Positive
    numbers: Count
    centre_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    centre_clip: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    releases: Annotated[int, Field(ge=1, le=1)] = 1
    public: list[str]
    outside: list[str] = Field(default_factory=list)


class PrivacySection(Section):
    """What is certain about real images; what was measured stands among the audits.

    Args:
        contains_real_images: whether images of the package are images of patients, or nearly so.
        starts_from_real_images: whether they were computed from such.
        guarantee: of differential privacy, where there is one.
        queries: what the method may ask the real images under its settings; teachers of soft labels see all.
    """

    contains_real_images: bool
    starts_from_real_images: bool
    guarantee: GuaranteeSection | None = None
    queries: list[Name] = Field(default_factory=list)


class DataSection(Section):
    """The original data. Under a guarantee of privacy its numbers are noisy, and it has no fingerprint, by which
    anybody could find out whether a guessed image is among them.

    Args:
        decoders: libraries that read files, with their versions, where the data are files.
        deidentification: codes and names of DICOM PS3.16 CID 7050, where files had headers.
    """

    name: str
    fingerprint: Sha256 | None
    training_images: Count
    per_stratum: list[Count]
    licence: str
    source: str
    notes: list[str]
    decoders: Annotated[dict[Word, Word], Field(max_length=50)] = Field(default_factory=dict)
    deidentification: Annotated[list[Word], Field(max_length=20)] = Field(default_factory=list)

    @model_serializer(mode="wrap")
    def _as_recorded(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Of data that are no files there is nothing to say.
        return {k: v for k, v in dump(self).items() if v or k not in ("decoders", "deidentification")}


class _Split(Section):
    split_seed: int
    split: Literal["stratified", "independent"] = "stratified"
    statistics: Literal["training", "public"] = "training"
    window: Annotated[list[Intensity], Field(min_length=2, max_length=2)] | None = None
    unreadable: Annotated[float, Field(ge=0, le=1)] = 0.0
    columns: Annotated[dict[Word, Word], Field(max_length=20)] | None = None
    slices: Literal["middle", "volume"] = "middle"
    test_site: Word | None = None
    label_attribute: Word | None = None
    burned_in_text: Literal["refused", "kept"] = "refused"
    spacing: Annotated[float, Field(gt=0, le=1000)] | None = None
    steps: Annotated[list[dict[Word, Any]], Field(max_length=16)] | None = None
    task: str | None = None

    @model_serializer(mode="wrap")
    def _as_recorded(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As configurations are recorded: what came later only where it is not what was always done.
        later = DataConfig.LATER
        return {k: v for k, v in dump(self).items() if k not in later or v != later[k]}


class _Labels(Section):
    teachers: int
    balance: bool
    calibrate: bool
    temperature: float
    recipe: dict[str, Any]

    @model_validator(mode="after")
    def _can_be_followed(self) -> _Labels:
        self.config()
        return self

    def config(self) -> LabelConfig:
        """As settings."""
        return LabelConfig.model_validate({name: getattr(self, name) for name in LabelConfig.model_fields})


class ConfigurationSection(Section):
    """The whole configuration; what reading needs of it is typed, the rest is kept."""

    data: _Split
    factor: Annotated[int, Field(ge=1, le=8)]
    labels: _Labels


class ProvenanceSection(Section):
    """Where the package comes from."""

    data: DataSection
    configuration: ConfigurationSection
    seed: int
    medistill: str


class Manifest(BaseModel):
    """What a package is. ``images``, ``files`` and ``package_id`` are filled in when it is written."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["medistill-package"] = FORMAT
    format_version: int = FORMAT_VERSION
    task: TaskSection
    image: ImageSection
    images: ImagesSection | None = None
    method: MethodSection
    start: Name
    privacy: PrivacySection
    audits: list[Finding] = Field(default_factory=list)
    evaluation: EvaluationResult | None = None
    provenance: ProvenanceSection
    files: dict[Annotated[str, AfterValidator(_safe_name)], Sha256] = Field(default_factory=dict)
    package_id: str = ""

    @model_validator(mode="after")
    def _fitting(self) -> Manifest:
        factor = self.provenance.configuration.factor
        if self.image.stored_shape != [n // factor for n in self.image.shape]:
            raise ValueError("images of a size that does not follow from the factor")
        real = self.method.kind == "coreset" or any(finding.real_images for finding in self.audits)
        if real and not self.privacy.contains_real_images:
            raise ValueError("real images that are not called so")
        if (self.start == "real") != self.privacy.starts_from_real_images:
            raise ValueError("a start that is told in two ways")
        if self.method.kind == "coreset" and self.start != "real":
            raise ValueError("chosen images that are not called real")
        if self.privacy.guarantee is not None:
            self._require_covered(self.privacy.guarantee)
        elif self.provenance.data.fingerprint is None:
            raise ValueError("data without a fingerprint that are not private")
        if self.images is None:
            return self
        if any(finding.real_images > self.images.count for finding in self.audits):
            raise ValueError("more real images than images")
        strata = len(self.images.per_stratum)
        lengths = {len(self.images.folders), len(self.provenance.data.per_stratum), len(self.made_task().strata)}
        if lengths != {strata} or sum(self.images.per_stratum) != self.images.count:
            raise ValueError("counts that do not fit the classes")
        if len(set(self.images.folders)) != strata:
            raise ValueError("a folder twice")
        return self

    def _require_covered(self, guarantee: GuaranteeSection) -> None:
        labels = self.provenance.configuration.labels
        if self.method.kind == "coreset" or self.start == "real" or labels.teachers:
            raise ValueError("a guarantee of privacy for what saw real images without noise")
        if self.provenance.data.fingerprint is not None:
            raise ValueError("a fingerprint of data that are private")
        if delta_of(guarantee.noise_multiplier, guarantee.epsilon) > guarantee.delta * (1 + 1e-3):
            raise ValueError("a guarantee for which its noise is not enough")
        if self.evaluation is not None and self.evaluation.data.fingerprint is not None:
            raise ValueError("an evaluation with a fingerprint of data that are private")
        if self.evaluation is not None and "evaluation" not in guarantee.outside:
            raise ValueError("an evaluation on real images that is not told to be outside the guarantee")

    def made_task(self) -> Task:
        """The task.

        Raises:
            ValueError: of a kind that is not known here.
        """
        try:
            return make_task(self.task.kind, self.task.class_names)
        except ConfigError as problem:
            if self.task.kind not in tasks():
                message = f"task '{self.task.kind}', which is not known here; install the package that provides it"
                raise ValueError(message) from problem
            raise ValueError(str(problem)) from problem

    @property
    def preprocessing(self) -> Preprocessing:
        """How originals became pixels, and how pixels are normalised."""
        return self.image.preprocessing

    @property
    def label_config(self) -> LabelConfig:
        """What labels the images have."""
        return self.provenance.configuration.labels.config()

    def as_json(self) -> Json:
        """As ``manifest.json`` holds it."""
        return self.model_dump(mode="json")
