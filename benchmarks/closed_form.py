"""Closed-form bilevel with cross entropy, a method on trial.

As ``frepo``, but what the regression says of real images is taken as logits, and their loss is cross entropy; squared
error is reported to be clearly worse.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from medistill.distil.matching import ridge_prediction
from medistill.distil.method import Observed, State, register
from medistill.distil.methods.frepo import FRePo
from medistill.distil.problem import DistillationProblem


@register
class ClosedForm(FRePo):
    """Kernel ridge regression on features of a pool of networks, with cross entropy outside."""

    info = FRePo.info.__class__(**{**vars(FRePo.info), "name": "closed-form", "version": 1})

    scale: float = Field(8.0, gt=0, le=1e4, description="of the regression's answers, which become logits")
    filters: int = Field(32, ge=1, le=4096, description="filters per convolution")

    def _misfit(self, synthetic: Tensor, state: State, observed: Observed, problem: DistillationProblem) -> Tensor:
        targets = self._labels(state, problem).to(synthetic.dtype)
        said = ridge_prediction(synthetic, targets - targets.mean(0), observed["real"], self.ridge)
        return problem.task.loss(self.scale * said.to(synthetic.dtype), observed["targets"])
