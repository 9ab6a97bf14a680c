"""What random networks see in images: features for audits, which need no trained network and no public data.

Source: random convolutional features keep what tells kinds of images apart (Saxe et al., "On Random Weights and
Unsupervised Feature Learning", ICML 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from medistill.aliases import Pixels
from medistill.data.image import Normalisation, decoded, encoded
from medistill.distil.real_images import CHUNK
from medistill.keys import Key
from medistill.nets.convnet import ConvNet, Parameters
from medistill.package.package import Package

FILTERS = 64

Features = npt.NDArray[np.float32]


def embedded(network: ConvNet, parameters: Parameters, normalisation: Normalisation, pixels: Pixels) -> Features:
    """Features (n, d) of pixels (n, c, *spatial) ``uint8``."""
    with torch.inference_mode():
        chunks = [
            network.embed(
                parameters, normalisation.normalise(torch.from_numpy(pixels[i : i + CHUNK].astype(np.float32)))
            )
            for i in range(0, len(pixels), CHUNK)
        ]
    return torch.cat(chunks).numpy()


def random_network(package: Package, key: Key) -> Callable[[Pixels], Features]:
    """What a random network sees in pixels (n, c, *spatial) ``uint8`` at the size that networks see, (n, d)."""
    image = package.preprocessing.image
    network = ConvNet(image.channels, image.shape, package.task.outputs, FILTERS)
    parameters = network.parameters(key)
    return lambda pixels: embedded(network, parameters, package.preprocessing.normalisation, pixels)


def package_features(package: Package, key: Key) -> Features:
    """Features (n, d) of a package's images at the size that networks see."""
    return random_network(package, key)(package.data.pixels)


def features_beside(package: Package, real: Sequence[Pixels], key: Key) -> list[Features]:
    """Features (n, d) of a package's images, and of real ones at the size that networks see.

    These are made as small as the package stores its images, and large again, so that sharpness does not tell.
    """
    seen, shape = random_network(package, key), package.preprocessing.image.shape
    return [seen(package.data.pixels), *(seen(decoded(encoded(side, package.stored_shape), shape)) for side in real)]


def left_out_answers(
    features: Features, targets: npt.NDArray[np.uint8], ridge: float = 1.0
) -> npt.NDArray[np.float64]:
    """What a linear model fitted to all other images says of each, (n, outputs): near 1 where it finds an output.

    Ridge regression on standardised features; leaving an image out has a closed form (Allen, "The Relationship
    Between Variable Selection and Data Augmentation and a Method for Prediction", Technometrics 1974).
    """
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0).clip(1e-6)
    gram = x @ x.T / x.shape[1]
    wanted = targets - targets.mean(axis=0)
    hat = np.linalg.solve(gram + ridge * np.eye(len(x)), gram).T
    fitted = hat @ wanted
    left_out = wanted - (wanted - fitted) / (1 - np.diag(hat)).clip(1e-9)[:, None]
    return np.asarray(left_out + targets.mean(axis=0))
