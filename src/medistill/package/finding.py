"""What an audit check found, as manifest, card, report and commands show it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Verdict = Literal["pass", "warn", "fail"]
"""Of one check, by what it measured: nothing more than that is said."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("unprintable characters")
    return text


Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=5000), AfterValidator(_printable)]
"""One line: it is shown on terminals, and may come from anybody."""


class Finding(BaseModel):
    """One check's result.

    Args:
        name: of the check.
        title: in words.
        value: what was measured.
        interval: its 95 % interval, where there is one.
        verdict: "pass", "warn" or "fail", by a rule that ``explanation`` states.
        explanation: what was measured, in sentences.
        reference: where the check is explained.
        real_images: how many images of the package are, to the check, images of patients.
        details: further figures by name.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    name: Word
    title: Word
    value: float | None
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    verdict: Verdict
    explanation: Text
    reference: Text = ""
    real_images: Annotated[int, Field(ge=0)] = 0
    details: dict[Word, Any] = Field(default_factory=dict)
