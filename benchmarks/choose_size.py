"""Trials of larger images: how small they are stored, and seen.

Validation images stand in for test images, which are never looked at: each set is written anew without them. Every
line is a package by ``distill`` and its evaluation by ``evaluate``, as a user would make them; seconds of distilling
hold the training of teachers.

    python benchmarks/choose_size.py FOLDER-OF-SETS [SET ...]
"""

from __future__ import annotations

import tempfile
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


def trial(data: Path, size: int, factor: int, out: Path) -> dict[str, Any]:
    """Seconds and megabytes of distilling, and balanced accuracy and AUROC of every arm."""
    options = ("--ipc", "10", "--size", str(size), "--factor", str(factor), "--out", str(out))
    cost = distil_afresh(str(data), *options)["cost"]
    arms = medistill_json("evaluate", str(out), "--on", str(data))["arms"]
    scores = {arm: [arms[arm][m]["mean"] for m in ("balanced_accuracy", "auroc")] for arm in ARMS if arm in arms}
    return {"seconds": cost["seconds"], "mb": cost["peak_memory_mb"], **scores}


def main() -> None:
    """Run the trials of the sets named, or of all."""
    folder, names = folder_and_sets(__doc__ or "", SETS)
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            data = Path(home) / f"{name}.npz"
            side = without_test_images(folder / f"{name}.npz", data)
            for title, (smaller, factor) in TRIALS.items():
                found = trial(data, side // smaller, factor, Path(home) / f"package-{smaller}-{factor}")
                arms = "; ".join(f"{arm} {found[arm][0]:.3f} {found[arm][1]:.3f}" for arm in ARMS if arm in found)
                print(f"{name}, {title}: {found['seconds']:.0f} s, {found['mb']:.0f} MB; {arms}", flush=True)


if __name__ == "__main__":
    main()
