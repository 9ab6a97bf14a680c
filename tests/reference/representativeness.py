"""Distances between two sets of features and answers to whitened patches, pair by pair and patch by patch."""

import numpy as np

from medistill.keys import Key
from medistill.prediction.spaces import DRAWN, PATCH_PLACES, PATCH_ROWS, PATCH_SIDE, PATCHES, THRESHOLD


def pairs(first, second):
    """The distance of each pair of rows."""
    return [np.sqrt(np.sum((a - b) ** 2)) for a in first for b in second]


def distances(made, seen, neighbours=5):
    """Scores of distilled features (n, d) beside real ones (m, d); higher is more alike."""
    between, among, within = pairs(made, seen), pairs(made, made), pairs(seen, seen)
    width = np.median([d for d in within if d > 0])

    def kernel(distance):
        return np.mean([np.exp(-((d / width) ** 2) / 2) for d in distance])

    frechet = 0.0
    for ours, theirs in zip(made.T, seen.T, strict=True):
        frechet += (np.mean(ours) - np.mean(theirs)) ** 2 + (np.std(ours) - np.std(theirs)) ** 2
    near = min(neighbours, len(seen) - 1)
    radius = [sorted(np.sqrt(np.sum((a - b) ** 2)) for b in seen)[near] for a in seen]
    inside = [
        [np.sqrt(np.sum((a - b) ** 2)) < r * (1 - 1e-5) for b, r in zip(seen, radius, strict=True)] for a in made
    ]
    return {
        "mmd": -(kernel(among) + kernel(within) - 2 * kernel(between)),
        "energy": -(2 * np.mean(between) - np.mean(among) - np.mean(within)),
        "frechet": -frechet,
        "density": np.mean([sum(row) for row in inside]) / max(1, near),
        "coverage": np.mean([any(column) for column in zip(*inside, strict=True)]),
    }


def patches(images, learned_from):
    """Raw features in the space of patches of images (n, c, 28, 28) within 0 to 1.

    At each place the patch without brightness and contrast, its answers above the threshold, pooled by quarters.
    """
    mean, filters = _filters(learned_from)
    places = PATCH_ROWS - PATCH_SIDE + 1
    found = np.zeros((len(images), 2 * len(filters), PATCH_PLACES, PATCH_PLACES))
    half = places // PATCH_PLACES
    for image, answers in zip(images, found, strict=True):
        for y in range(places):
            for x in range(places):
                said = filters @ (_plain(image[:, y : y + PATCH_SIDE, x : x + PATCH_SIDE]) - mean)
                both = np.concatenate([np.maximum(said - THRESHOLD, 0), np.maximum(-said - THRESHOLD, 0)])
                answers[:, y // half, x // half] += both / half**2
    return found.reshape(len(images), -1)


def _plain(patch):
    patch = patch.reshape(-1)
    return (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-3)


def _filters(images):
    """Mean of the patches that are drawn, and those chosen of them: whitened, of length one, whitening again."""
    draw, last = Key(0).child("patches").numpy(), PATCH_ROWS - PATCH_SIDE + 1
    rows, ys, xs = draw.integers(0, len(images), DRAWN), draw.integers(0, last, DRAWN), draw.integers(0, last, DRAWN)
    drawn = np.array(
        [_plain(images[i][:, y : y + PATCH_SIDE, x : x + PATCH_SIDE]) for i, y, x in zip(rows, ys, xs, strict=True)]
    )
    mean = drawn.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((drawn - mean).T))
    values = np.maximum(values, 0)
    whitening = sum(
        np.outer(v, v) / np.sqrt(value + 0.05 * values.mean() + 1e-6)
        for value, v in zip(values, vectors.T, strict=True)
    )
    chosen = [(drawn[i] - mean) @ whitening for i in draw.permutation(DRAWN)[:PATCHES]]
    return mean, np.array([one / np.linalg.norm(one) for one in chosen]) @ whitening
