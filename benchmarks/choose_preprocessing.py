"""Trials of preprocessing steps: what each is worth before distilling, one at a time.

Validation images stand in for test images, which are never looked at: each set is written anew without them.
Every line is a package by ``distill``, with fewer steps than the default, and its evaluation by ``evaluate``; all
images and random ones are prepared by the same steps. Sets of more than 32 pixels are prepared at their own size and
then seen at 32.

    python benchmarks/choose_preprocessing.py FOLDER-OF-SETS [SET ...]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from choose_size import without_test_images
from sets import folder_and_sets, medistill_json

SETS = ("oct_dme_128", "ct_iqoth_128", "breastmnist_64", "bloodcells_28")
STEPS = {
    "none": "[]",
    "clip": "[clip]",
    "rescale": "[rescale]",
    "crop": "[crop]",
    "clahe": "[clahe]",
    "stain": "[stain]",
}
STAINED = ("bloodcells_28", "whitecells_28", "all_leukemia4_28")
"""Sets of stained cells, the only ones for which stain normalisation is meant."""

FEWER = ("--set", "method.iterations=200", "--set", "method.networks=25", "--set", "labels.teachers=1")
NETWORKS = ("--set", "repeats=3", "--set", "random_draws=3")
ARMS = ("distilled", "random", "random_matched", "full")


def main() -> None:
    """Run the trials of the sets named, or of all."""
    folder, names = folder_and_sets(__doc__ or "", SETS)
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            data = Path(home) / f"{name}.npz"
            side = without_test_images(folder / f"{name}.npz", data)
            size = ("--size", "32") if side > 32 else ()
            for title, steps in STEPS.items():
                if title == "stain" and name not in STAINED:
                    continue
                out, taken = str(Path(home) / title), f"data.steps={steps}"
                medistill_json("distill", str(data), "--ipc", "10", "--out", out, *size, *FEWER, "--set", taken)
                arms = medistill_json("evaluate", out, "--on", str(data), *NETWORKS)["arms"]
                scores = "; ".join(
                    f"{arm} {arms[arm]['balanced_accuracy']['mean']:.3f} {arms[arm]['auroc']['mean']:.3f}"
                    for arm in ARMS
                    if arm in arms
                )
                print(f"{name}, {title}: {scores}", flush=True)


if __name__ == "__main__":
    main()
