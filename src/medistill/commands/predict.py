"""``predict``: how well distilling will work, before it is done."""

from __future__ import annotations

import time
from pathlib import Path

from medistill.aliases import Json
from medistill.commands.guarantee import outlook
from medistill.config import DataConfig, PrivacyConfig
from medistill.data.checks import require_usable
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, prepare, require_depth
from medistill.errors import ConfigError, nearest
from medistill.package.results import ENOUGH
from medistill.prediction.examples import RANDOM_METHOD, read_examples, shipped
from medistill.prediction.features import PackageSpec, features, features_seconds, random_counts, work
from medistill.prediction.indicator import Indicator, Prediction
from medistill.progress import Progress, duration, say
from medistill.runtime import prepare_torch

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
    privacy: PrivacyConfig | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Json:
    """Say what each method is expected to reach, by what was measured on other data.

    Small networks are trained for seconds on random images, and on those that a coreset chooses where these are few;
    nothing is distilled. Validation and test images are not looked at.

    Args:
        data: as for ``distill``.
        ipc: images per class, or
        ratio: distilled images per training image.
        method: only this one, as a study names it; all that the studies know by default.
        db: a study's database whose runs are learned from too.
        config: how the data are read.
        privacy: a guarantee that would be asked for: what ε the data can bear is told under ``privacy``. Predictions
            stay those of packages without a guarantee, which no study has measured with one.
        seed: of the package that would be distilled.
        progress: show progress on standard error.

    Returns:
        ``predictions.<method>.<metric>.{mean,ci95}`` for balanced_accuracy, auroc, recovery (share of the full
        data's balanced accuracy) and gain (over random images of the same bytes); ``verdict`` with ``method``,
        ``code`` ("worth it", "random images will do", "more images needed" or "will not work") and ``words``;
        ``notes``; ``features`` by method; ``learned_from`` (runs, data sets, origins); ``seconds``.

    Raises:
        DataError, ConfigError: one line each.
    """
    prepare_torch()
    started = time.monotonic()
    examples = read_examples([*shipped(), *([] if db is None else [Path(db)])])
    indicator = Indicator(tuple(examples))
    if method is not None and method not in indicator.methods:
        raise ConfigError(
            f"no study measured '{method}'", where="--method", remedy=nearest(method, indicator.methods)
        )
    dataset = load(data, config)
    for issue in require_usable(dataset):
        say(f"warning: {issue.kind}: {issue.found}", progress)
    if config is not None:
        require_depth(dataset, config)
    bearable = None if privacy is None else outlook(dataset, privacy, config or DataConfig())
    prepared = prepare(dataset, config)
    _require_measured(prepared, indicator)
    counts = random_counts(prepared, ipc, ratio, 1)
    packages = _packages(prepared, {"ipc": ipc, "ratio": ratio, "seed": seed}, indicator, method, progress)
    if progress and (seconds := features_seconds(prepared, packages)):
        say(f"predicting takes about {duration(seconds)}")
    with Progress(
        "training small networks on few images", work(prepared, list(packages.values())), enabled=progress
    ) as shown:
        by_method = features(prepared, packages, shown.advance)
    predictions = {name: indicator.predict(inputs, name) for name, inputs in by_method.items()}
    return {
        "data": dataset.description.name,
        "images_per_class": list(counts),
        "predictions": {
            name: {quantity: {"mean": p.mean, "ci95": [p.low, p.high]} for quantity, p in by_quantity.items()}
            for name, by_quantity in predictions.items()
        },
        "verdict": _verdict(next(iter(by_method.values())), predictions),
        "notes": _notes(indicator, list(predictions)),
        "features": by_method,
        **({} if bearable is None else {"privacy": bearable}),
        "learned_from": {
            "runs": len(examples),
            "data_sets": len({e.data for e in examples}),
            "origins": len({e.group for e in examples}),
        },
        "seconds": round(time.monotonic() - started, 3),
    }


def _require_measured(prepared: PreparedDataset, indicator: Indicator) -> None:
    """Refuse what no study measured anything like.

    Raises:
        ConfigError: another kind of task, or volumes.
    """
    where, task = prepared.dataset.description.name, prepared.task
    if task.kind not in indicator.tasks:
        raise ConfigError(
            f"its task is '{task.kind}', which no study has measured", where=where,
            allowed=", ".join(sorted(indicator.tasks)),
            remedy="measure some with `medistill study run` and give its file with --db" if task.exclusive else None,
        )  # fmt: skip
    if prepared.preprocessing.image.dimensions != 2:
        raise ConfigError("it holds volumes, which no study has measured", where=where, allowed="2-D images")


def _notes(indicator: Indicator, methods: list[str]) -> list[str]:
    """What a reader should know about where the predictions come from."""
    real = [m for m in methods if m != RANDOM_METHOD and indicator.started_from_real_images(m)]
    coresets = [m for m in real if indicator.configurations[m].get("method", {}).get("start") is None]
    learned = [m for m in real if m not in coresets]
    if not learned:
        return []
    return [
        f"{', '.join(learned)} {'was' if len(learned) == 1 else 'were'} measured with real first images, as packages "
        "are not made any more unless asked for; from noise expect somewhat less"
    ]


def _packages(
    prepared: PreparedDataset, size: Json, indicator: Indicator, only: str | None, progress: bool
) -> dict[str, PackageSpec]:
    """The package of each method, or of the one asked for, at that size and seed.

    Methods that cannot be used on these data, or are not installed, are left out where others can.
    """
    packages = {}
    problem: ConfigError | None = None
    for name in indicator.methods if only is None else [only]:
        try:
            package = PackageSpec.of({**indicator.configurations[name], **size})
            package.counts(prepared)
            packages[name] = package
        except ConfigError as refused:
            problem = refused
            if only is None:
                say(f"warning: {name} left out: {refused}", progress)
    if not packages and problem is not None:
        raise problem
    return packages


def _verdict(inputs: dict[str, float], predictions: dict[str, dict[str, Prediction]]) -> Json:
    """What to do, by the method that is expected to reach most."""
    chance = 1 / inputs["classes"]
    reach = (inputs["all.balanced_accuracy"] - chance) / (1 - chance)
    others = {name: p for name, p in predictions.items() if name != RANDOM_METHOD} or predictions
    name = max(others, key=lambda m: others[m]["balanced_accuracy"].mean)
    recovery, gain = others[name]["recovery"], others[name]["gain"]
    expected = f"{name} is expected to reach {recovery.mean:.0%} of the full data's balanced accuracy"
    if reach < HOPELESS:
        code = "will not work"
        words = "even all images lift a small network hardly above chance; look at the data and labels first"
    elif recovery.mean < ENOUGH:
        code, words = "more images needed", f"{expected}, below {ENOUGH:.0%}; ask for more images per class"
    elif gain.low > 0:
        code, words = "worth it", f"{expected}, {gain.mean:+.3f} over random images of the same bytes"
    elif gain.mean < 0.02:
        code = "random images will do"
        words = f"{expected}, hardly more than random images of the same bytes ({gain.mean:+.3f})"
    else:
        code = "worth it"
        words = (
            f"{expected}, {gain.mean:+.3f} over random images of the same bytes, but data like these have also "
            "gained nothing"
        )
    return {"method": name, "code": code, "words": words}
