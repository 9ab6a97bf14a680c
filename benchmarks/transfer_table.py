"""Transfer: the default's package, made with ConvNets, as training data for other networks.

One package per set at ten images per class, the one of the table of methods; every network is
trained on it, on random images and on all images by the same recipe: two networks of each kind, three
draws of random images and bfloat16, because it takes hours of two cores. Goes on where it stopped:
trained networks are kept in the user's cache, finished sets in ``docs/results/transfer``.

    python benchmarks/transfer_table.py [FOLDER OF SETS] [SET ...]
"""

from __future__ import annotations

from typing import get_args

from methods_table import DEFAULT, SCORES, SETS, distilled, is_measured
from sets import ROOT, folder_and_sets, medistill_json

from medistill.config import Net
from medistill.files import pretty_json, write_atomically

RESULTS = ROOT / "docs" / "results" / "transfer"
ARCHITECTURES = ",".join(get_args(Net))
FEWER = ("--set", "repeats=2", "--set", "random_draws=3", "--set", "recipe.precision=bfloat16")


def main() -> None:
    """Measure what is missing."""
    folder, sets = folder_and_sets(__doc__ or "", SETS)
    for data in sets:
        path = RESULTS / f"{data}-ipc10.json"
        if is_measured(path, DEFAULT):
            continue
        package, made = distilled(folder, data, DEFAULT, 10, 0)
        asked = ("--on", str(folder / f"{data}.npz"), "--architectures", ARCHITECTURES, *FEWER)
        result = medistill_json("evaluate", str(package), *asked)
        each = {result["architecture"]: result, **result["transfer"]}
        scores = {name: {key: found[key] for key in SCORES} for name, found in each.items()}
        about = {key: result[key] for key in ("test_images", "repeats", "random_draws", "recipe", "data")}
        value = {"set": data, "ipc": 10, "seed": 0, "start": made["start"], "architectures": scores, **about}
        write_atomically(path, pretty_json(value))


if __name__ == "__main__":
    main()
