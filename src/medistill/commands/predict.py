"""``predict``: how well distilling will work, before it is done."""

from __future__ import annotations

import math
import time
from pathlib import Path

from medistill.config import DataConfig
from medistill.data.checks import require_usable
from medistill.data.load import load
from medistill.data.preprocess import Prepared, prepare
from medistill.distil.problem import stored_images
from medistill.errors import ConfigError, nearest
from medistill.evaluation.protocol import same_bytes
from medistill.prediction.examples import RANDOM_METHOD, read_examples, shipped
from medistill.prediction.features import features, work
from medistill.prediction.indicator import Indicator, Prediction
from medistill.progress import Progress, say
from medistill.runtime import prepare_torch
from medistill.types import Json

ENOUGH = 0.90
"""Share of the full data's balanced accuracy that counts as working."""

HOPELESS = 0.15
"""Where even all images lift small networks less than this share of the way from chance to one, nothing will do."""


def predict(
    data: str | Path,
    *,
    ipc: int | None = None,
    ratio: float | None = None,
    method: str | None = None,
    db: str | Path | None = None,
    config: DataConfig | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Json:
    """Say what each method is expected to reach, by what was measured on other data.

    Small networks are trained for seconds on random images; nothing is distilled. Validation and test
    images are not looked at.

    Args:
        data: as for ``distill``.
        ipc: images per class, or
        ratio: distilled images per training image.
        method: only this one, as a study names it; all that the studies know by default.
        db: a study's database whose runs are learned from too.
        config: how the data are read.
        seed: of samples and networks.
        progress: show progress on standard error.

    Returns:
        ``predictions.<method>.<metric>.{mean,ci95}`` for balanced_accuracy, auroc, recovery (share of the full
        data's balanced accuracy) and gain (over random images of the same bytes); ``verdict`` with ``method``,
        ``code`` ("worth it", "random images will do", "more images needed" or "will not work") and ``words``;
        ``features``; ``learned_from`` (runs, data sets, origins); ``seconds``.

    Raises:
        DataError, ConfigError: one line each.
    """
    prepare_torch()
    started = time.monotonic()
    known = read_examples([*shipped(), *([] if db is None else [Path(db)])])
    indicator = Indicator(tuple(known))
    if method is not None and method not in indicator.methods:
        raise ConfigError(
            f"no study measured '{method}'", where="--method", remedy=nearest(method, indicator.methods)
        )
    dataset = load(data, config)
    for problem in require_usable(dataset):
        say(f"warning: {problem.kind}: {problem.found}", progress)
    prepared = prepare(dataset, config)
    counts = _plain_counts(prepared, ipc, ratio, 1)
    alike = _counts_by_method(prepared, ipc, ratio, indicator, method, progress)
    by_counts: dict[tuple[int, ...], dict[str, float]] = {}
    sizes = dict.fromkeys((counts, *alike.values()))
    total = sum(work(prepared, list(each)) for each in sizes)
    with Progress("training small networks on random images", total, enabled=progress) as shown:
        for each in sizes:
            by_counts[each] = features(prepared, list(each), seed, shown.advance)
    found = by_counts[counts]
    predictions = {name: indicator.predict(by_counts[each], name) for name, each in alike.items()}
    return {
        "data": dataset.description.name,
        "images_per_class": list(counts),
        "predictions": {
            name: {quantity: {"mean": p.mean, "ci95": [p.low, p.high]} for quantity, p in each.items()}
            for name, each in predictions.items()
        },
        "verdict": _verdict(found, predictions),
        "features": found,
        "learned_from": {
            "runs": len(known),
            "data_sets": len({e.data for e in known}),
            "origins": len({e.group for e in known}),
        },
        "seconds": round(time.monotonic() - started, 3),
    }


def _plain_counts(prepared: Prepared, ipc: int | None, ratio: float | None, factor: int) -> tuple[int, ...]:
    """Random images of each class that have the bytes of a package whose images are stored smaller; fewer than asked
    for where a class has not as many images as the package would hold.
    """
    stored, counts = stored_images(prepared, ipc, ratio, factor)
    share = math.prod(stored) / math.prod(prepared.train.pixels.shape[2:])
    return tuple(same_bytes(counts, share))


def _counts_by_method(
    prepared: Prepared, ipc: int | None, ratio: float | None, indicator: Indicator, only: str | None, progress: bool
) -> dict[str, tuple[int, ...]]:
    """For each method, or the one asked for, how many random images have its package's bytes.

    Methods that cannot store images of this size are left out where others can.
    """
    found = {}
    for name in indicator.methods if only is None else [only]:
        try:
            found[name] = _plain_counts(prepared, ipc, ratio, indicator.factors[name])
        except ConfigError as problem:
            if only is not None or indicator.factors[name] == 1:
                raise
            say(f"warning: {name} left out: {problem}", progress)
    return found


def _verdict(found: dict[str, float], predictions: dict[str, dict[str, Prediction]]) -> Json:
    """What to do, by the method that is expected to reach most."""
    chance = 1 / found["classes"]
    reach = (found["all.balanced_accuracy"] - chance) / (1 - chance)
    made = {name: p for name, p in predictions.items() if name != RANDOM_METHOD} or predictions
    name = max(made, key=lambda m: made[m]["balanced_accuracy"].mean)
    recovery, gain = made[name]["recovery"], made[name]["gain"]
    told = f"{name} is expected to reach {recovery.mean:.0%} of the full data's balanced accuracy"
    if reach < HOPELESS:
        code = "will not work"
        words = "even all images lift a small network hardly above chance; look at the data and labels first"
    elif recovery.mean < ENOUGH:
        code, words = "more images needed", f"{told}, below {ENOUGH:.0%}; ask for more images per class"
    elif gain.low > 0:
        code, words = "worth it", f"{told}, {gain.mean:+.3f} over random images of the same bytes"
    elif gain.mean < 0.02:
        code = "random images will do"
        words = f"{told}, hardly more than random images of the same bytes ({gain.mean:+.3f})"
    else:
        code = "worth it"
        words = (
            f"{told}, {gain.mean:+.3f} over random images of the same bytes, but data like these have also gained "
            "nothing"
        )
    return {"method": name, "code": code, "words": words}
