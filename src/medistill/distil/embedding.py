"""The feature space in which coresets choose: a ConvNet with random weights."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medistill.distil.method import Coreset
from medistill.distil.problem import CHUNK, Problem
from medistill.keys import Key
from medistill.nets.convnet import ConvNet

LIBRARY_MB = 60.0
"""Megabytes of what a choice is made with (scikit-learn)."""


class EmbeddingCoreset(Coreset):
    """A coreset chosen in the embedding of a ConvNet that was never trained.

    Random convolutional features keep what is near in the image near, cost one forward pass
    and see no label.
    """

    filters: int = Field(64, ge=1, le=4096, description="filters per convolution of the embedding network")

    def memory_mb(self, problem: Problem, classes: int) -> float:
        network = ConvNet(*problem.shape, problem.classes, self.filters)
        embedded = 4e-6 * network.embedding_size * max(problem.sizes)
        inside = problem.at_once(CHUNK) / 2 * network.activation_mb_on(problem.device)
        return super().memory_mb(problem, classes) + LIBRARY_MB + inside + 3 * embedded

    def embed(self, problem: Problem, label: int, key: Key) -> Tensor:
        """Embeddings of all training images of a class, (class size, d), the same network for all classes."""
        network = ConvNet(*problem.shape, problem.classes, self.filters)
        parameters = problem.parameters(network, Key(key.seed).child("embedding"))
        with torch.no_grad():
            rows = torch.arange(problem.sizes[label])
            return torch.cat(
                [
                    network.embed(parameters, problem.of_class(label, chunk))
                    for chunk in rows.split(problem.at_once(CHUNK))
                ]
            )
