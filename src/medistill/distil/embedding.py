"""The feature space in which coresets choose: a ConvNet with random weights."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from medistill.distil.method import Coreset
from medistill.distil.problem import DistillationProblem
from medistill.distil.real_images import CHUNK
from medistill.keys import Key
from medistill.nets.convnet import ConvNet
from medistill.nets.zoo import width_for

LIBRARY_MB = 60.0
"""Megabytes of what a choice is made with (scikit-learn)."""


class EmbeddingCoreset(Coreset):
    """A coreset chosen in the embedding of a ConvNet that was never trained.

    Random convolutional features keep what is near in the image near, cost one forward pass
    and see no label.
    """

    filters: int = Field(
        64, ge=1, le=4096, description="filters per convolution of the embedding network; of volumes half as many"
    )

    def network(self, problem: DistillationProblem) -> ConvNet:
        """The network's shape for these images."""
        width = width_for(problem.shape, self.filters)
        return ConvNet(problem.channels, problem.shape, problem.outputs, width, stem=1)

    def memory_mb(self, problem: DistillationProblem, strata: int) -> float:
        network = self.network(problem)
        embedded = 4e-6 * network.embedding_size * max(problem.real_per_stratum)
        chunk = problem.at_once(CHUNK)
        asking = min(problem.workers.number, -(-max(problem.real_per_stratum) // chunk))
        # Every pixel is seen and nothing kept: most is what passes by in the first block (fitted at 128 pixels).
        inside = asking * chunk * 0.3 * network.activation_mb_on(problem.device)
        return super().memory_mb(problem, strata) + LIBRARY_MB + inside + 3 * embedded

    def embed(self, problem: DistillationProblem, stratum: int, key: Key) -> Tensor:
        """Embeddings of all training images of a stratum, (size, d), the same network for all strata."""
        network = self.network(problem)
        parameters = problem.parameters(network, Key(key.seed).child("embedding"))
        return self.real(problem).embeddings(lambda x: network.embed(parameters, x), stratum).value.images
