"""From a study's file to its runs: each with all that determines it, and the hash of that as its identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from medistill.aliases import Json
from medistill.config import CHANGES_NOTHING, EvaluateConfig
from medistill.data.align import align, renamed
from medistill.distil.configuration import configured
from medistill.distil.problem import images_per_stratum
from medistill.errors import DataError, concerning
from medistill.evaluation.jobs import VERSION as NETWORKS_VERSION
from medistill.files import canonical_json, sha256_text
from medistill.nets.zoo import VERSION as ZOO_VERSION
from medistill.prediction.features import VERSION as FEATURES_VERSION
from medistill.records.records import RunRecord, RunSpec
from medistill.study.config import DataEntry, GridCell, MethodEntry, Pooled, StudyConfig
from medistill.study.variation import also_renamed, data_identity, read_entry

VERSION = 4
"""Raised whenever the same specification would give other figures for reasons that no other version tells."""


@dataclass(frozen=True)
class PlannedRun(RunSpec):
    """One run to do.

    Args:
        stage: runs of an earlier stage train networks that later ones find in the cache.
    """

    stage: int = 0


def plan(config: StudyConfig) -> list[PlannedRun]:
    """Every run of a study. All data are read, so that mistakes show before hours of work.

    Raises:
        DataError: data cannot be read or used, or a site's classes are not those of the data trained on.
        ConfigError: an unknown method, preset or setting.
    """
    data = {entry.name: read_entry(entry) for entry in config.data}
    entries = {entry.name: entry for entry in config.data}
    identities = {name: data_identity(entries[name], dataset) for name, dataset in data.items()}
    for name, dataset in data.items():
        if "test" not in dataset.splits:
            raise DataError("has no test images", where=name, remedy="add a test split to evaluate on")
    for transfer in config.transfer:
        with concerning(f"transfer from '{transfer.from_}' to '{transfer.to}'"):
            there = renamed(data[transfer.to], transfer.classes)
            if sum(n > 0 for n in there.counts("test")) < 2:
                raise DataError("fewer than two classes are left to test on", remedy="give fewer of them one name")
            align(there, data[transfer.from_].task)
    runs: list[PlannedRun] = []
    for entry in config.data:
        of_entry = {"entry": entry.model_dump(mode="json"), "data_identity": identities[entry.name]}
        cells = _cells(entry, config)
        sites = []
        for t in config.transfer:
            if t.from_ == entry.name:
                site = {"entry": entries[t.to].model_dump(mode="json"), "identity": identities[t.to]}
                with concerning(f"transfer from '{t.from_}' to '{t.to}'"):
                    sites.append(({**site, "classes": t.classes}, t.of(cells)))
        sizes = data[entry.name].counts("train")
        for cell in cells:
            with concerning(f"data set '{entry.name}'"):
                images_per_stratum(sizes, cell[1], cell[2])
            common = {**of_entry, **_common(config.evaluate, *cell)}
            how = {"keep_networks": bool(sites), "features": config.features}
            specification = {"kind": "distilled", **how, **common}
            runs.append(_run(config, specification, entry, identities[entry.name], *cell))
            for site in (site for site, meant in sites if cell in meant):
                specification = {"kind": "transfer", "site": site, **common}
                runs.append(_run(config, specification, entry, identities[entry.name], *cell))
    for pooled in config.pooled:
        runs += _pooled_runs(config, pooled, entries)
    return _staged(runs)


def renewals(planned: list[PlannedRun], records: list[RunRecord]) -> list[PlannedRun]:
    """For each package that was measured, and whose data's features are wanted and an earlier version computed, or
    none, a run that computes them anew. The package is not made again: of what was measured on it nothing changes.
    """
    of = {run.identity: run for run in planned}
    return [
        replace(
            of[record.identity],
            identity=sha256_text(canonical_json({"features": FEATURES_VERSION, "of": record.identity})),
            kind="features",
            specification={**of[record.identity].specification, "kind": "features", "of": record.identity},
            stage=0,
        )
        for record in records
        if record.identity in of and record.status == "done" and record.kind == "distilled"
        if of[record.identity].specification["features"]
        if (record.result or {}).get("features_version") != FEATURES_VERSION
    ]


def _cells(entry: DataEntry, config: StudyConfig) -> list[GridCell]:
    sized = entry.ipc is not None or entry.ratio is not None
    ipcs = (entry.ipc or ()) if sized else config.ipc
    ratios = (entry.ratio or ()) if sized else config.ratio
    sizes: list[tuple[int | None, float | None]] = [*((n, None) for n in ipcs), *((None, r) for r in ratios)]
    return [
        (method, ipc, ratio, seed)
        for seed in entry.seeds or config.seeds
        for ipc, ratio in sizes
        for method in entry.methods or config.methods
    ]


def _common(evaluate: EvaluateConfig, method: MethodEntry, ipc: int | None, ratio: float | None, seed: int) -> Json:
    """What a worker needs, and with ``determined`` what the method's files and versions add to it."""
    named = None if method.method == "default" else method.method
    with concerning(f"method '{method.title}'"):
        _, resolved = configured(named, ipc, ratio, method.preset, method.settings, {"seed": seed}, False)
    zoo = {"zoo": ZOO_VERSION} if set(evaluate.architectures) != {"convnet"} else {}
    # No curves are kept.
    return {
        "method": method.model_dump(mode="json"), "ipc": ipc, "ratio": ratio, "seed": seed,
        "evaluate": evaluate.model_dump(mode="json", exclude={"curve_points"}),
        "determined": {
            "distil": resolved.model_dump(mode="json", exclude={"data", *CHANGES_NOTHING}),
            "versions": {"study": VERSION, "networks": NETWORKS_VERSION, **zoo},
        },
    }  # fmt: skip


def _run(
    config: StudyConfig,
    specification: Json,
    entry: DataEntry,
    content: str,
    method: MethodEntry,
    ipc: int | None,
    ratio: float | None,
    seed: int,
) -> PlannedRun:
    hashed = {k: specification[k] for k in ("kind", "evaluate", "determined")}
    if specification["kind"] != "distilled":  # these ask the first kind of network, and compute no further scores
        hashed["evaluate"] = {
            **hashed["evaluate"],
            "architectures": hashed["evaluate"]["architectures"][:1],
            "robust_scores": False,
        }
    hashed["data"] = content
    if "site" in specification:
        hashed["site"] = {"data": specification["site"]["identity"], "classes": specification["site"]["classes"]}
    return PlannedRun(
        sha256_text(canonical_json(hashed)), config.name, specification["kind"], entry.name, entry.group, content,
        method.title, ipc, ratio, seed, specification,
    )  # fmt: skip


def _pooled_runs(config: StudyConfig, pooled: Pooled, entries: dict[str, DataEntry]) -> list[PlannedRun]:
    """Packages of several sites pooled, for each cell of the first one."""
    first = entries[pooled.data[0]]
    parts: list[Json] = []
    shapes: dict[str, object] = {}
    for name in pooled.data:
        entry = also_renamed(entries[name], pooled.classes.get(name, {}))
        dataset = read_entry(entry)
        align(dataset, read_entry(first).task)
        image = dataset.image
        shapes[name] = (entry.data.size or image.shape, entry.data.channels or image.channels, entry.data.bits)
        if shapes[name] != shapes[first.name]:
            raise DataError(
                f"(size, channels, bits) {shapes[name]} and {shapes[first.name]} cannot be pooled",
                where=f"{name} and {first.name}",
                remedy="give both the same size, channels and bits, below data",
            )
        parts.append({"entry": entry.model_dump(mode="json"), "identity": data_identity(entry, dataset)})
    identity = sha256_text(canonical_json([part["identity"] for part in parts]))
    together = first.model_copy(update={"name": " + ".join(pooled.data)})
    runs = []
    with concerning(f"pooled {together.name}"):
        cells = pooled.of(_cells(first, config))
    for method, ipc, ratio, seed in cells:
        common = _common(config.evaluate, method, ipc, ratio, seed)
        specification = {"kind": "pooled", "parts": parts, **common}
        runs.append(_run(config, specification, together, identity, method, ipc, ratio, seed))
    return runs


def _staged(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Order runs so that what many need is trained first, once.

    The first run of a data set trains its full arms; the first of a data set and size trains
    its random ones; transfer and pooled runs come last, when the packages they need are made.
    """
    seen: set[tuple[str, object, object] | str] = set()
    staged = []
    for run in runs:
        size = (run.data_identity, run.ipc, run.ratio)
        stage = 0 if run.data_identity not in seen else 1 if size not in seen else 2
        stage = stage if run.kind == "distilled" else 3
        seen |= {run.data_identity, size}
        staged.append(replace(run, stage=stage))
    return sorted(staged, key=lambda run: run.stage)


def estimated_seconds(todo: list[PlannedRun], records: list[RunRecord]) -> float | None:
    """Seconds of work for these runs by what like ones took; None where nothing is known.

    The mean over runs of the same kind, method and size on the same data, else of the same kind, method and size,
    else of the same kind and method, else of the same kind; where none of that kind is known, over others alike.
    """
    took: dict[tuple[object, ...], list[float]] = {}
    for record in records:
        size = (record.ipc, record.ratio)
        for key in ((record.method, size, record.data), (record.method, size), (record.method,), ()):
            took.setdefault((record.kind, *key), []).append(record.seconds)
            took.setdefault(key, []).append(record.seconds)
    if not took:
        return None
    total = 0.0
    for run in todo:
        size = (run.ipc, run.ratio)
        keys: list[tuple[object, ...]] = [(run.method, size, run.data), (run.method, size), (run.method,), ()]
        alike = [*((run.kind, *key) for key in keys), *keys]
        total += fmean(next(took[key] for key in alike if key in took))
    return total
