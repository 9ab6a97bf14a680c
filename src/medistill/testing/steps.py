"""What every preprocessing step must do."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from medistill.data.step import Step, StepRecord, make_step
from medistill.errors import ConfigError

KINDS = [
    (dtype, shape) for dtype in ("uint8", "int16", "float32") for shape in ((1, 24, 20), (3, 24, 20), (1, 12, 16, 20))
]
"""Gray, colour and volumes of 8 and more bits."""


class StepConformance:
    """Tests that follow from the contract of a preprocessing step alone."""

    step: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def make(self) -> Step:
        """The step under test."""
        return make_step(StepRecord(self.step, self.options))

    @pytest.mark.parametrize(("dtype", "shape"), KINDS)
    def test_it_keeps_the_contract_or_refuses_such_images(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Shape and kind of numbers stay, each image is changed by itself, and what is given is not."""
        given = sample_images(dtype, shape)
        before = given.copy()
        try:
            self.make().require(given)
        except ConfigError as refusal:
            assert "\n" not in str(refusal)
            return
        step = self.make().fitted(given)
        done = step.apply(given)
        assert np.array_equal(given, before), "what is given was changed"
        assert done.images.shape == given.shape and 0 <= done.left <= len(given)
        assert done.images.dtype == (np.uint8 if dtype == "uint8" else np.float32)
        assert np.isfinite(done.images).all()
        if not step.keeps_units and dtype != "uint8":
            assert done.images.min() >= 0 and done.images.max() <= 1
        alone = [step.apply(given[i : i + 1]).images for i in range(len(given))]
        assert np.array_equal(done.images, np.concatenate(alone)), "an image depends on others"
        # What a manifest holds of it makes the same step again.
        record = json.loads(json.dumps({"name": step.record.name, "options": step.record.options}))
        again = make_step(StepRecord(record["name"], record["options"]))
        assert np.array_equal(again.apply(given).images, done.images)
        for value in step.record.options.values():
            for one in value if isinstance(value, list | tuple) else [value]:
                assert one is None or isinstance(one, bool | int | float | str), "a manifest cannot hold it"
        if not self.make().looks_at_training_images:
            assert self.make().fitted(given[:2]).record == step.record, "it follows from training images"

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_constant_images_stay_finite(self, dtype: str) -> None:
        constant = np.full((2, 1, 24, 20), 7, dtype=dtype)
        try:
            self.make().require(constant)
        except ConfigError:
            return
        assert np.isfinite(self.make().fitted(constant).apply(constant).images).all()


def sample_images(dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Five noisy images with a dark border along one axis."""
    values = np.random.default_rng(0).random((5, *shape))
    values[..., :3], values[..., -2:] = 0, 0
    scale, shift = {"uint8": (255, 0), "int16": (4000, -1000), "float32": (7, 0)}[dtype]
    return (scale * values + shift).astype(dtype)
