"""Trials of larger images: how small they are stored, and seen.

Validation images stand in for test images, which are never looked at: each set is written anew without them. Every
line is a package by ``distill`` and its evaluation by ``evaluate``, as a user would make them; seconds of distilling
hold the training of teachers.

    python benchmarks/choose_size.py FOLDER-OF-SETS [SET ...]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sets import distil_afresh, folder_and_sets, medistill_json

SETS = ("ct_kidney4_64", "oct_dme_128", "ct_iqoth_128")
TRIALS = {
    "whole": (1, 1),
    "half the side": (1, 2),
    "a quarter of the side": (1, 4),
    "all images at half the side, stored whole": (2, 1),
}
"""By how much the set's images are made smaller, and by how much the stored ones are smaller again."""

ARMS = ("distilled", "random", "random_matched", "full")


def without_test_images(source: Path, target: Path) -> int:
    """Write a set whose test images are its validation images; the side of its images."""
    with np.load(source, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if not name.startswith("test_")}
    arrays |= {name.replace("val_", "test_"): values for name, values in arrays.items() if name.startswith("val_")}
    np.savez(target, **{name: values for name, values in arrays.items() if not name.startswith("val_")})
    return int(arrays["train_images"].shape[1])


def validation_sets(usage: str, sets: Sequence[str]) -> Iterator[tuple[str, Path, int]]:
    """Of each set that the command line names its name, a file with validation images for test images, and the side
    of its images; packages may lie beside the file, which goes away.
    """
    folder, names = folder_and_sets(usage, sets)
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            data = Path(home) / f"{name}.npz"
            yield name, data, without_test_images(folder / f"{name}.npz", data)


def scores_in_words(arms: dict[str, Any]) -> str:
    """Balanced accuracy and AUROC of every arm."""
    return "; ".join(
        f"{arm} {arms[arm]['balanced_accuracy']['mean']:.3f} {arms[arm]['auroc']['mean']:.3f}"
        for arm in ARMS
        if arm in arms
    )


def main() -> None:
    """Run the trials of the sets named, or of all."""
    for name, data, side in validation_sets(__doc__ or "", SETS):
        for title, (smaller, factor) in TRIALS.items():
            out = str(data.with_name(f"package-{smaller}-{factor}"))
            options = ("--ipc", "10", "--size", str(side // smaller), "--factor", str(factor), "--out", out)
            cost = distil_afresh(str(data), *options)["cost"]
            scores = scores_in_words(medistill_json("evaluate", out, "--on", str(data))["arms"])
            spent = f"{cost['seconds']:.0f} s, {cost['peak_memory_mb']:.0f} MB"
            print(f"{name}, {title}: {spent}; {scores}", flush=True)


if __name__ == "__main__":
    main()
