"""The base of all settings, and those of how data are read and prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

Side = Annotated[int, Field(ge=16, le=4096)]
"""Pixels of an image's side."""

CT_WINDOWS = {
    "lung": (-1350.0, 150.0), "bone": (-450.0, 1050.0), "brain": (0.0, 80.0), "soft-tissue": (-160.0, 240.0),
    "mediastinum": (-175.0, 275.0),
}  # fmt: skip
"""Windows of computed tomography that are in use, in Hounsfield units."""


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    LATER: ClassVar[Mapping[str, Any]] = {}
    """Settings that came later, with their defaults: what was recorded before stays known by its values."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if k not in self.LATER or v != self.LATER[k]}


class DataConfig(Settings):
    """How a source is read and prepared. What is left out is taken from the source."""

    size: Annotated[tuple[Side, ...], Field(min_length=2, max_length=3)] | None = Field(
        None, description="pixels of a side, [height, width] or [depth, height, width]; None keeps the source's size"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 gray, 3 RGB; None keeps the source's")
    task: str | None = Field(
        None, description="what labels mean: binary, multi-class, ordinal (grades) or multi-label (findings)"
    )
    class_names: tuple[str, ...] | None = Field(None, description="one name per class number, grade or finding")
    flips: Literal["none", "horizontal", "both"] | None = Field(
        None, description="which mirror images keep their class"
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="what the data set is called in packages and reports; of folders, tables and zips 'images' if "
        "not given, as their own names may name somebody",
    )
    licence: str | None = Field(None, description="licence of the original images")
    source: str | None = Field(None, description="who made the original images")
    split_seed: int = Field(0, description="seed of a split made here")
    split: Literal["stratified", "independent"] = Field(
        "stratified",
        description="how a missing split is made: stratified, or each patient (or image) independent of all others",
    )
    statistics: Literal["training", "public"] = Field(
        "training", description="what pixels are normalised by: the training images, or numbers known to everybody"
    )
    window: tuple[float, float] | None = Field(
        None,
        description="intensities that become black and white, of CT by name too: lung, bone, brain, soft-tissue, "
        "mediastinum; None: those of the source, else the extremes of the training images",
    )
    bits: Literal[8, 16] = Field(
        8, description="of a pixel as prepared, distilled and packaged; 16 for gray images that have more than 8"
    )
    steps: Annotated[tuple[dict[str, Any], ...], Field(max_length=16)] | None = Field(
        None,
        description="steps of preprocessing in order, each a name or {name: clahe, tiles: 4}",
    )
    spacing: float | None = Field(
        None, gt=0, le=1000, description="millimetres between pixels to which DICOM and NIfTI files are resampled"
    )
    unreadable: float = Field(
        0.0, ge=0, le=1, description="share of files that may be unreadable; they are left out and counted"
    )

    burned_in_text: Literal["refused", "kept"] = Field(
        "refused",
        description="whether real images may go into a package where files seem to show letters: refused, or kept by "
        "somebody who looked at them",
    )

    columns: dict[str, str] | None = Field(
        None, description="of a table of labels: which column is the file, label, patient, site or split"
    )

    label_attribute: str | None = Field(
        None, max_length=100, description="the DICOM attribute whose value is the class, as BodyPartExamined"
    )

    slices: Literal["middle", "volume"] = Field(
        "middle", description="of NIfTI files: the axial slice in the middle, or the whole volume"
    )

    test_site: str | None = Field(
        None,
        description="a site or scanner, as `check` names it, to hold out: its images are the test images",
    )

    LATER: ClassVar[Mapping[str, Any]] = {
        "split": "stratified", "statistics": "training", "window": None, "unreadable": 0.0, "columns": None,
        "slices": "middle", "test_site": None, "name": None, "steps": None, "spacing": None, "label_attribute": None,
        "burned_in_text": "refused", "bits": 8,
    }  # fmt: skip

    @field_validator("steps", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        entries = [value] if isinstance(value, str | dict) else value
        if not isinstance(entries, list | tuple):
            return value
        named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        for entry in named:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ValueError(f"{entry!r} is no step; a name, or options with one as in {{name: clahe, tiles: 4}}")
        return tuple(named)

    @field_validator("window", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in CT_WINDOWS:
                raise ValueError(f"'{value}' is no window; two numbers, or {', '.join(CT_WINDOWS)}")
            return CT_WINDOWS[value]
        return value

    @field_validator("window")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{value[0]:g} to {value[1]:g} is no window, the first must be the lower")
        return value

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value
