"""Trials of preprocessing steps: what each is worth before distilling, one at a time.

Validation images stand in for test images, which are never looked at: each set is written anew without them.
Every line is a package by ``distill``, with fewer steps than the default, and its evaluation by ``evaluate``; all
images and random ones are prepared by the same steps. Sets of more than 32 pixels are prepared at their own size and
then seen at 32.

    python benchmarks/choose_preprocessing.py FOLDER-OF-SETS [SET ...]
"""

from __future__ import annotations

from choose_size import scores_in_words, validation_sets
from sets import medistill_json

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


def main() -> None:
    """Run the trials of the sets named, or of all."""
    for name, data, side in validation_sets(__doc__ or "", SETS):
        size = ("--size", "32") if side > 32 else ()
        for title, steps in STEPS.items():
            if title == "stain" and name not in STAINED:
                continue
            out, taken = str(data.with_name(title)), f"data.steps={steps}"
            medistill_json("distill", str(data), "--ipc", "10", "--out", out, *size, *FEWER, "--set", taken)
            arms = medistill_json("evaluate", out, "--on", str(data), *NETWORKS)["arms"]
            print(f"{name}, {title}: {scores_in_words(arms)}", flush=True)


if __name__ == "__main__":
    main()
