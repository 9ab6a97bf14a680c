"""Write the results pages from the measured data in ``docs/results``. Run by ``make docs``; a test runs it too.

Nothing is measured here. The data are what ``medistill evaluate --json`` printed. Those that an earlier version wrote
are read under the names of now; their methods began with real images, and rows of the tables say so.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from make_audits import audits_page
from make_dicom import dicom_page
from make_private import private_page
from make_speed import speed_page
from make_tasks import starts_page, tasks_page

from medistill.formatting import with_interval
from medistill.package.upgrade import upgraded_recipe, upgraded_scores

if TYPE_CHECKING:
    from medistill.records.records import RunRecord
    from medistill.reporting.page import Table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
ARMS = {
    "distilled": "distilled", "random": "random, same number",
    "full": "all training images", "full_balanced": "all, classes balanced",
}  # fmt: skip
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "f1_macro": "F1"}


def read(file: Path) -> dict[str, Any]:
    """A measurement under the names of now, with what the first images were as ``start``."""
    value = json.loads(file.read_text())
    earlier = "networks" in value  # a name that this version does not write
    found = upgraded_scores(value)
    found["recipe"] = upgraded_recipe(found["recipe"])
    if "nets" in found:
        found["architectures"] = {name: upgraded_scores(each) for name, each in found.pop("nets").items()}
    # Before there was another default, every method and preset measured here began with real images.
    start = "real" if earlier else found.get("package", {}).get("start", "not recorded")
    return {"start": start, **found}


def load() -> list[tuple[str, dict[str, Any]]]:
    """The committed results of the main job, by file name."""
    return measured("main-job")


def files(folder: str) -> list[Path]:
    """The committed measurements of a folder of ``docs/results``."""
    return sorted((HERE / "results" / folder).glob("*.json"))


def measured(folder: str) -> list[tuple[str, dict[str, Any]]]:
    """What :func:`files` hold, by file name."""
    return [(file.stem, read(file)) for file in files(folder)]


def _share(value: float | None) -> str:
    if value is None:
        return "-"
    digits = 1 if abs(value) >= 0.001 or value == 0 else 2
    return f"{value:.{digits}%}".replace("%", " %")


def page() -> str:
    """docs/results/main-job.md."""
    parts = [
        "# The main job on real sets",
        "Each table is what `medistill evaluate PACKAGE --on SET --json` printed (the objects themselves lie in "
        "[main-job/](main-job/)), after `medistill distill SET --method dm --ipc N --seed 0`, on two CPU cores. "
        "*Start* is what the first images were: packages that say `real` were made before noise was the default, as "
        "`--set method.start=real` makes them now. Means over networks, or over random draws; in brackets the 95 % "
        "interval over runs and test images. Test images were seen once, by finished networks. One package each: the "
        "intervals do not cover another distillation seed.",
    ]
    for name, result in load():
        images, cost = result["images"]["distilled"], result["cost"]
        title = f"{result['data']['name']}, {images} images ({name.rpartition('-ipc')[2]} per class)"
        parts.append(f"## {title}")
        titles = {**ARMS, "distilled": f"{ARMS['distilled']}, start: {result['start']}"}
        rows = ["| trained on | images | " + " | ".join(METRICS.values()) + " |", "|---" * (2 + len(METRICS)) + "|"]
        for arm, title in titles.items():
            values = [with_interval(result["arms"][arm][m]) for m in METRICS]
            rows.append(f"| {title} | {result['images'][arm]} | " + " | ".join(values) + " |")
        gains = [with_interval(result["gain_over_random"][m], "+.3f") for m in METRICS]
        rows.append("| **gain over random** | | " + " | ".join(gains) + " |")
        for key, title in (("recovery", "recovery"), ("recovery_above_baseline", "recovery above chance")):
            rows.append(f"| {title} | | " + " | ".join(_share(result[key][m]) for m in METRICS) + " |")
        parts.append("\n".join(rows))
        parts.append(
            f"{_share(result['compression']['images'])} of the images, {_share(result['compression']['bytes'])} of "
            f"the bytes; tested on {result['test_images']}. Distilled in {cost['distillation']['seconds']:.0f} s, "
            f"evaluated in {cost['seconds']:.0f} s with at most {cost['peak_memory_mb']:.0f} MB ({cost['device']}; "
            "an evaluation finds in the cache what an earlier one on the same data has trained)."
        )
    return "\n\n".join(parts) + "\n"


def compared() -> list[dict[str, Any]]:
    """The committed cells of the table of methods."""
    return [cell for _, cell in measured("methods")]


def methods_page() -> str:
    """docs/results/methods.md."""
    cells = compared()
    parts = [
        "# Methods compared",
        "Measured by `make methods-table` (`benchmarks/methods_table.py`; the objects lie in [methods/](methods/)), "
        "each package on the test images of its set, on two CPU cores. `default` is what `distill` does where no "
        "method is named; every other method runs at its `quick` preset or defaults, with plain images and plain "
        "labels. `default-real-start` is the default with `--set method.start=real`, as it was until version 0.1.0; "
        "its seconds hold no training of teachers, which are those of `default`. *Start* is what the first images "
        "were; packages that began with real ones may show patients, and those of methods that choose images are of "
        "patients. *Audits* is the verdict of each check that a package carries, `-` where it was measured before "
        "packages were audited; every method measured then began with real images. Gains are over random images of "
        "the same bytes of pixels and, where the package stores images smaller or has soft labels, over random "
        "images stored and labelled in the same way; in brackets the 95 % interval. *Bytes* are of the package as "
        "it is sent, compressed. Gains and recovery are of balanced accuracy. Seconds and peak memory are of "
        "distilling, teachers and experts included; the machine was shared, so seconds tell the order and no more.",
    ]
    for data in sorted({c["set"] for c in cells}):
        rows = [
            "| method | start | per class | seed | accuracy | balanced accuracy | AUROC | gain over random "
            "| over random, same storage and labels | recovery | above chance | audits | bytes | seconds | MB |",
            "|---" * 15 + "|",
        ]
        own = [c for c in cells if c["set"] == data]
        for c in sorted(own, key=lambda c: (c["ipc"], -c["arms"]["distilled"]["balanced_accuracy"]["mean"])):
            arm, alike = c["arms"]["distilled"], c["gain_over_random_matched"]
            gain = with_interval(c["gain_over_random"]["balanced_accuracy"], "+.3f")
            rows.append(
                f"| {c['method']} | {c['start']} | {c['ipc']} | {c['seed']} | {with_interval(arm['accuracy'])} "
                f"| {with_interval(arm['balanced_accuracy'])} "
                f"| {with_interval(arm['auroc'])} | {gain} "
                f"| {with_interval(alike['balanced_accuracy'], '+.3f') if alike else '-'} "
                f"| {_share(c['recovery']['balanced_accuracy'])} "
                f"| {_share(c['recovery_above_baseline']['balanced_accuracy'])} | {_audits(c)} | {c['bytes']:,} "
                f"| {c['cost']['seconds']:.0f} | {c['cost']['peak_memory_mb']:.0f} |"
            )
        full = own[0]["arms"]["full"]
        parts.append(f"## {data}")
        parts.append(
            f"All training images: balanced accuracy {with_interval(full['balanced_accuracy'])}, AUROC "
            f"{with_interval(full['auroc'])}; tested on {own[0]['test_images']} images."
        )
        parts.append("\n".join(rows))
        parts += _between_seeds(own)
        told = [f"- {c['method']}, {c['ipc']} per class: {c['remark']}." for c in own if "remark" in c]
        parts += ["\n".join(told)] if told else []
    return "\n\n".join(parts) + "\n"


def _audits(cell: dict[str, Any]) -> str:
    """The verdict of each check, and how many images are real to it."""
    told = [
        f"{finding['name']}: {finding['verdict']}" + (f" ({n} real images)" if (n := finding["real_images"]) else "")
        for finding in cell.get("audits", [])
    ]
    return "; ".join(told) or "-"


def _between_seeds(cells: list[dict[str, Any]]) -> list[str]:
    """What another seed of distilling changes; nothing where one seed was measured."""
    rows = [
        "| method | start | per class | seeds | accuracy | balanced accuracy | AUROC | recovery above chance |",
        "|---" * 8 + "|",
    ]
    for method, start, ipc in dict.fromkeys((c["method"], c["start"], c["ipc"]) for c in cells):
        own = [c for c in cells if (c["method"], c["start"], c["ipc"]) == (method, start, ipc)]
        if len(own) > 1:
            arms = [c["arms"]["distilled"] for c in own]
            values = [[a[m]["mean"] for a in arms] for m in ("accuracy", "balanced_accuracy", "auroc")]
            values.append([c["recovery_above_baseline"]["balanced_accuracy"] for c in own])
            told = [f"{fmean(v):.3f} ± {stdev(v):.3f}" for v in values]
            rows.append(f"| {method} | {start} | {ipc} | {len(own)} | {' | '.join(told)} |")
    if len(rows) == 2:
        return []
    return ["Over seeds of distilling, mean and standard deviation:", "\n".join(rows)]


def transfer_page() -> str:
    """docs/results/transfer.md."""
    parts = [
        "# Transfer to other networks",
        "Measured by `make transfer-table` (`benchmarks/transfer_table.py`; the objects lie in "
        "[transfer/](transfer/)): the package that `distill` makes where no method is named, ten images per class, "
        "28 pixels. It was made with ConvNets; each of these networks is trained on it, on random images stored "
        "and labelled in the same way, and on all images, by the same recipe. Balanced accuracy, and in brackets "
        "the 95 % interval. *Start* is what the package's first images were: those that say `real` were made before "
        "noise was the default, as `--set method.start=real` makes them now.",
    ]
    for _, found in measured("transfer"):
        rows = [
            "| network | distilled | random, same bytes | random, same storage and labels | all "
            "| AUROC: distilled / random / matched / all | gain over random | over random alike | above chance |",
            "|---" * 9 + "|",
        ]
        for net, scores in found["architectures"].items():
            arms = scores["arms"]
            names = ("distilled", "random", "random_matched", "full")
            means = [with_interval(arms[name]["balanced_accuracy"]) for name in names]
            areas = " / ".join(f"{arms[name]['auroc']['mean']:.3f}" for name in names)
            over = (scores[gain]["balanced_accuracy"] for gain in ("gain_over_random", "gain_over_random_matched"))
            above = _share(scores["recovery_above_baseline"]["balanced_accuracy"])
            rows.append(f"| {net} | {' | '.join(means)} | {areas} | {' | '.join(map(_gain, over))} | {above} |")
        how = (
            f"Start: {found['start']}; {found['test_images']} test images, {found['repeats']} networks of each kind, "
            f"{found['random_draws']} draws of random images; trained in "
            f"{found['recipe'].get('precision', 'float32')}. *Above chance* is the share of what all "
            "images reach, both less what chance does."
        )
        parts += [f"## {found['set']}", how, "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _gain(value: dict[str, Any]) -> str:
    return with_interval(value, "+.3f")


BASIS = HERE.parent / "src" / "medistill" / "prediction" / "basis.db"
SHOWN = (
    "boundary",
    "results",
    "equivalents",
    "sites",
    "pooled",
    "representativeness",
    "indicator",
    "origins",
    "failures",
)


def guidelines() -> str:
    """docs/guidelines.md, from the study that comes with the tool."""
    from medistill.records.records import current
    from medistill.records.store import Store
    from medistill.study.report import all_tables
    from medistill.study.statements import CHOSEN, statements
    from medistill.study.tables import cells

    with Store(BASIS) as store:
        runs, tables = store.runs(), {table.key: table for table in all_tables(store)}
    done = [r for r in runs if r.status == "done"]
    hours = sum(r.seconds for r in runs) / 3600
    parts = [
        "# Guidelines",
        "Every sentence here was made from the figures below it, and those by `make study` "
        "([studies/feasibility.yaml](../studies/feasibility.yaml)), which goes on where it stopped; the database is "
        f"`src/medistill/prediction/basis.db`. So far {len(done)} runs, {len(runs) - len(done)} failed, {hours:.1f} "
        "hours of work on two CPU cores, not counting networks that the cache held from earlier measurements. "
        f"Test images were seen once, by finished networks. {CHOSEN}",
        _starts(current(done)),
        "\n".join(f"- {s.text} [figures](#{_anchor(tables[s.table].title)})" for s in statements(cells(runs), runs)),
    ]
    for key in SHOWN:
        if key in tables:
            table = _with_start(tables[key], current(done))
            note = [table.note] if table.note else []
            parts += [f"## {table.title}", *note, table.markdown()]
    return "\n\n".join(parts) + "\n"


def _starts(runs: Iterable[RunRecord]) -> str:
    """What each method's first images were, in a sentence."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        found[run.start].add(run.method)
    told = "; ".join(f"start: {start} for {', '.join(sorted(names))}" for start, names in sorted(found.items()))
    return f"What the first images of the packages were: {told}. Noise is the default now; `real` may show patients."


def _with_start(table: Table, runs: Iterable[RunRecord]) -> Table:
    """A table that names data and methods, with a column that tells what the first images were."""
    from medistill.reporting.page import Column

    titles = [column.title for column in table.columns]
    if not {"data", "method"} <= set(titles):
        return table
    data, method = titles.index("data"), titles.index("method")
    found: dict[tuple[Any, Any], set[str]] = defaultdict(set)
    for run in runs:
        found[run.data, run.method].add(run.start)
    columns = [*table.columns[: method + 1], Column("start"), *table.columns[method + 1 :]]
    rows = []
    for row in table.rows:
        starts = ", ".join(sorted(found[row[data], row[method]])) or None
        rows.append([*row[: method + 1], starts, *row[method + 1 :]])
    return replace(table, columns=columns, rows=rows)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def summary() -> str:
    """The table in the README: the first package of the default for each set, and what its first images were."""
    rows = [
        "| set | start | pixels of so many images per class | share of pixels "
        "| balanced accuracy: distilled / random / all "
        "| AUROC: distilled / random / all | gain over random | over random, same storage and labels |",
        "|---" * 8 + "|",
    ]
    # Where the default was not measured since it starts from noise, what it was before; the second column tells.
    cells = {}
    for name in ("default-real-start", "default"):
        cells |= {(c["set"], c["ipc"]): c for c in compared() if (c["method"], c["seed"]) == (name, 0)}
    for _, cell in sorted(cells.items()):
        columns = [cell["set"], cell["start"], str(cell["ipc"]), _share(cell["compression"]["images"])]
        for metric in ("balanced_accuracy", "auroc"):
            means = [cell["arms"][arm][metric]["mean"] for arm in ("distilled", "random", "full")]
            columns.append("**{:.3f}** / {:.3f} / {:.3f}".format(*means))
        for gain in ("gain_over_random", "gain_over_random_matched"):
            columns.append(with_interval(cell[gain]["balanced_accuracy"], "+.3f"))
        rows.append("| " + " | ".join(columns) + " |")
    return "\n".join(rows)


def readme() -> str:
    """The README with the table between its markers."""
    text = README.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- results -->\n).*?(\n<!-- end of results -->)", re.DOTALL)
    return marked.sub(lambda m: m[1] + summary() + m[2], text)


def pages() -> dict[Path, str]:
    """Every page that is written from measured data, by file."""
    results = HERE / "results"
    return {
        results / "main-job.md": page(),
        results / "methods.md": methods_page(),
        **(
            {results / "starts.md": starts_page(compared())}
            if any(c["method"] == "default" for c in compared())
            else {}
        ),
        results / "speed.md": speed_page(),
        **({results / "tasks.md": tasks_page([cell for _, cell in measured("tasks")])} if files("tasks") else {}),
        **({results / "transfer.md": transfer_page()} if files("transfer") else {}),
        **(
            {results / "private.md": private_page([json.loads(file.read_text()) for file in files("private")])}
            if files("private")
            else {}
        ),
        **(
            {results / "audits.md": audits_page([json.loads(file.read_text()) for file in files("audits")])}
            if files("audits")
            else {}
        ),
        results / "dicom.md": dicom_page(json.loads((results / "dicom.json").read_text())),
        **({HERE / "guidelines.md": guidelines()} if BASIS.exists() else {}),
        README: readme(),
    }


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
