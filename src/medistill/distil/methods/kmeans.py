"""k-means: the real image nearest the centre of each cluster of a class."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from medistill.distil.embedding import EmbeddingCoreset
from medistill.distil.method import MethodInfo, register
from medistill.distil.problem import DistillationProblem
from medistill.keys import Key


@register
class KMeans(EmbeddingCoreset):
    """k-means clusters of each class in a random embedding. These are real patient images."""

    info = MethodInfo(
        "k-means",
        "k-means representatives",
        1,
        "coreset",
        "seconds",
        "@article{lloyd1982, title={Least squares quantization in PCM}, author={Lloyd, Stuart}, "
        "journal={IEEE Transactions on Information Theory}, year={1982}}",
        queries=("embeddings", "draw"),
    )

    def choose(self, problem: DistillationProblem, stratum: int, count: int, key: Key) -> Tensor:
        from sklearn.cluster import KMeans as Clustering
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        features = self.embed(problem, stratum, key).cpu().numpy()
        seed = key.integer() % 2**32
        # Sums in one order, whatever the machine's cores. Equal images may leave fewer centres, which does no harm.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            centres = Clustering(count, n_init=1, random_state=seed).fit(features).cluster_centers_
        chosen: list[int] = []
        for centre in centres:
            distance = np.square(features - centre).sum(axis=1)
            distance[chosen] = np.inf
            chosen.append(int(distance.argmin()))
        return torch.tensor(chosen)
