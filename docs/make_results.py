"""Write the results pages from the measured data in ``docs/results``. Run by ``make docs``; a test runs it too.

Nothing is measured here. The data are what ``medistill evaluate --json`` printed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medistill.numbers import with_interval

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
ARMS = {
    "distilled": "distilled", "random": "random, same number",
    "full": "all training images", "full_balanced": "all, classes balanced",
}  # fmt: skip
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "f1_macro": "F1"}


def load() -> list[tuple[str, dict[str, Any]]]:
    """The committed results by file name."""
    files = sorted((HERE / "results" / "main-job").glob("*.json"))
    return [(file.stem, json.loads(file.read_text())) for file in files]


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
        "[main-job/](main-job/)), after `medistill distill SET --method dm --ipc N --seed 0`, on two CPU cores, at "
        "the defaults of this version. Means over networks, or over random draws; in brackets the 95 % interval "
        "over runs and test images. Test images were seen once, by finished networks. One package each: the "
        "intervals do not cover another distillation seed.",
    ]
    for name, result in load():
        images, cost = result["images"]["distilled"], result["cost"]
        parts.append(f"## {result['data']['name']}, {images} images ({name.rpartition('-ipc')[2]} per class)")
        rows = ["| trained on | images | " + " | ".join(METRICS.values()) + " |", "|---" * (2 + len(METRICS)) + "|"]
        for arm, title in ARMS.items():
            values = [with_interval(result["arms"][arm][m]) for m in METRICS]
            rows.append(f"| {title} | {result['images'][arm]} | " + " | ".join(values) + " |")
        gains = [with_interval(result["gain_over_random"][m], "+.3f") for m in METRICS]
        rows.append("| **gain over random** | | " + " | ".join(gains) + " |")
        for key, title in (("recovery", "recovery"), ("recovery_above_chance", "recovery above chance")):
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
    return [json.loads(file.read_text()) for file in sorted((HERE / "results" / "methods").glob("*.json"))]


def methods_page() -> str:
    """docs/results/methods.md."""
    cells = compared()
    parts = [
        "# Methods compared",
        "Measured by `make methods-table` (`benchmarks/methods_table.py`; the objects lie in "
        "[methods/](methods/)), each package on the test images of its set, on two CPU cores. `default` is "
        "what `distill` does where no method is named; every other method runs at its `quick` preset or "
        "defaults, with plain images and plain labels. Gains are over random images of the same bytes of pixels and, "
        "where the package stores images smaller or has soft labels, over random images stored and labelled "
        "in the same way; in brackets the 95 % interval. *Bytes* are of the package as it "
        "is sent, compressed. Gains and recovery are of balanced accuracy. Seconds and "
        "peak memory are of distilling, teachers and experts included; the machine was shared, so seconds tell "
        "the order and no more.",
    ]
    for data in sorted({c["set"] for c in cells}):
        rows = [
            "| method | per class | seed | accuracy | balanced accuracy | AUROC | gain over random "
            "| over random stored alike | recovery | above chance | bytes | seconds | MB |",
            "|---" * 13 + "|",
        ]
        own = [c for c in cells if c["set"] == data]
        for c in sorted(own, key=lambda c: (c["ipc"], -c["arms"]["distilled"]["balanced_accuracy"]["mean"])):
            arm, alike = c["arms"]["distilled"], c["gain_over_random_stored_alike"]
            gain = with_interval(c["gain_over_random"]["balanced_accuracy"], "+.3f")
            rows.append(
                f"| {c['method']} | {c['ipc']} | {c['seed']} | {with_interval(arm['accuracy'])} "
                f"| {with_interval(arm['balanced_accuracy'])} "
                f"| {with_interval(arm['auroc'])} | {gain} "
                f"| {with_interval(alike['balanced_accuracy'], '+.3f') if alike else '-'} "
                f"| {_share(c['recovery']['balanced_accuracy'])} "
                f"| {_share(c['recovery_above_chance']['balanced_accuracy'])} | {c['bytes']:,} "
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


def _between_seeds(cells: list[dict[str, Any]]) -> list[str]:
    """What another seed of distilling changes; nothing where one seed was measured."""
    rows = [
        "| method | per class | seeds | accuracy | balanced accuracy | AUROC | recovery above chance |",
        "|---" * 7 + "|",
    ]
    for method, ipc in dict.fromkeys((c["method"], c["ipc"]) for c in cells):
        own = [c for c in cells if (c["method"], c["ipc"]) == (method, ipc)]
        if len(own) > 1:
            arms = [c["arms"]["distilled"] for c in own]
            values = [[a[m]["mean"] for a in arms] for m in ("accuracy", "balanced_accuracy", "auroc")]
            values.append([c["recovery_above_chance"]["balanced_accuracy"] for c in own])
            told = [f"{fmean(v):.3f} ± {stdev(v):.3f}" for v in values]
            rows.append(f"| {method} | {ipc} | {len(own)} | {' | '.join(told)} |")
    if len(rows) == 2:
        return []
    return ["Over seeds of distilling, mean and standard deviation:", "\n".join(rows)]


def transfer_files() -> list[Path]:
    """The committed measurements of transfer."""
    return sorted((HERE / "results" / "transfer").glob("*.json"))


def transfer_page() -> str:
    """docs/results/transfer.md."""
    parts = [
        "# Transfer to other networks",
        "Measured by `make transfer-table` (`benchmarks/transfer_table.py`; the objects lie in "
        "[transfer/](transfer/)): the package that `distill` makes where no method is named, ten images per class, "
        "28 pixels. It was made with ConvNets; each of these networks is trained on it, on random images stored "
        "and labelled in the same way, and on all images, by the same recipe. Balanced accuracy, and in brackets "
        "the 95 % interval.",
    ]
    for file in transfer_files():
        measured = json.loads(file.read_text())
        rows = [
            "| network | distilled | random, same bytes | random, stored alike | all "
            "| AUROC: distilled / random / alike / all | gain over random | over random alike | above chance |",
            "|---" * 9 + "|",
        ]
        for net, scores in measured["nets"].items():
            arms = scores["arms"]
            names = ("distilled", "random", "random_stored_alike", "full")
            means = [with_interval(arms[name]["balanced_accuracy"]) for name in names]
            areas = " / ".join(f"{arms[name]['auroc']['mean']:.3f}" for name in names)
            over = (
                scores[gain]["balanced_accuracy"] for gain in ("gain_over_random", "gain_over_random_stored_alike")
            )
            above = _share(scores["recovery_above_chance"]["balanced_accuracy"])
            rows.append(f"| {net} | {' | '.join(means)} | {areas} | {' | '.join(map(_gain, over))} | {above} |")
        how = (
            f"{measured['test_images']} test images, {measured['networks']} networks of each kind, "
            f"{measured['random_draws']} draws of random images; trained in "
            f"{measured['recipe'].get('precision', 'float32')}. *Above chance* is the share of what all "
            "images reach, both less what chance does."
        )
        parts += [f"## {measured['set']}", how, "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _gain(value: dict[str, Any]) -> str:
    return with_interval(value, "+.3f")


def speed_page() -> str:
    """docs/results/speed.md."""
    parts = [
        "# Speed and memory",
        "Measured by `make bench` (`benchmarks/bench.py`; what it wrote lies in `benchmarks/results`). Ratios "
        "of steps and of evaluation are of alternating rounds in one run, medians with their range; quality "
        "is one run of each, over when it is first as good as the plain loop after its 2000 steps (the "
        "published schedule has 20,000). The plain loop is written from the papers, as the published programs "
        "work, in float32: a new network at each step, a loop over classes, nothing kept. Rows that name no "
        "precision are in bfloat16 where the processor computes in it, as the default is; `--method dm` is "
        "float32 unless asked otherwise, and so are evaluations. The rate that shares are of is always "
        "float32's, and operations are counted as convolutions are defined: tiles, which need a quarter of the "
        "products, can take the share above 100 %. Notes of older figures tell where nothing was compiled yet.",
    ]
    for file in sorted((HERE.parent / "benchmarks" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        parts.append(f"## {found['machine']}")
        for name, write in SECTIONS.items():
            if name in found:
                of = found[name]
                versions = f"medistill {of['medistill']}, torch {of['torch']}"
                note = f"; {of['note']}" if "note" in of else ""
                when = f"({of['data']}, {of['threads']} threads, {versions}, {of['date']}{note})"
                parts += [f"### {name.capitalize()}", when, *write(of)]
    return "\n\n".join(parts) + "\n"


def _speed_steps(of: dict[str, Any]) -> list[str]:
    rows = ["| steps of | times the plain loop | share of a large float32 convolution's rate |", "|---|---|---|"]
    for name, row in of.items():
        if isinstance(row, dict):
            share = row.get("share_of_float32_convolution_ceiling")
            rows.append(f"| {name} | {_ratio(row)} | {'-' if share is None else f'{share:.0%}'} |")
    return ["\n".join(rows)]


def _speed_quality(of: dict[str, Any]) -> list[str]:
    plain = of["plain"]
    lines = [
        f"The plain loop of distribution matching reached a balanced accuracy of {plain['balanced_accuracy']:.3f} on "
        f"validation images after {plain['steps']} steps.",
    ]
    for name in ("dm", "the default"):
        row = of[name]
        reached = f"{row['balanced_accuracy']:.3f} after {row['steps']} steps"
        times = "not reached" if row["ratio"] is None else f"in {row['ratio']:.1f} times less time"
        lines.append(f"- {name}: {times} ({reached}{', teachers and labels included' if name != 'dm' else ''})")
    return ["\n".join([lines[0], "", *lines[1:]])]


def _speed_evaluation(of: dict[str, Any]) -> list[str]:
    return [
        "Five networks side by side against one after the other in float32: "
        + "; ".join(f"in {name} {_ratio(of[name])} times" for name in ("float32", "bfloat16") if name in of)
        + "."
    ]


def _speed_precision(of: dict[str, Any]) -> list[str]:
    rows = [
        "Balanced accuracy on validation images of networks that differ in `recipe.precision` alone: mean and "
        "standard deviation over networks, mean difference of those that began alike and its standard error.\n",
        "| trained on | networks | float32 | bfloat16 | difference |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, scores in of.items():
        if isinstance(scores, dict):
            whole, half = scores["float32"], scores["bfloat16"]
            both = " | ".join(f"{fmean(s):.3f} ± {stdev(s):.3f}" for s in (whole, half))
            change = [b - a for a, b in zip(whole, half, strict=True)]
            error = stdev(change) / len(change) ** 0.5
            rows.append(f"| {name} | {len(whole)} | {both} | {fmean(change):+.3f} ± {error:.3f} |")
    return ["\n".join(rows)]


def _speed_estimates(of: dict[str, Any]) -> list[str]:
    rows = ["| `distill` | estimated MB | measured MB | |", "|---|---|---|---|"]
    for name, row in of.items():
        if isinstance(row, dict):
            guess, peak = row["estimated"], row["measured"]
            rows.append(f"| `{name}` | {guess:.0f} | {peak:.0f} | {guess / peak - 1:+.0%} |")
    return ["\n".join(rows)]


def _speed_large(of: dict[str, Any]) -> list[str]:
    rows = [
        "The default at ten images per class on made-up sets, with `--memory-limit 4GB`:\n",
        "| set | estimated MB | measured MB | seconds | steps |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in of.items():
        if isinstance(row, dict):
            steps = f"few: `{row['options']}`" if row["options"] else "all"
            if "refused" in row:
                rows.append(f"| {name} | refused: `{row['refused'].removeprefix('medistill: ')}` | - | - | - |")
                continue
            rows.append(
                f"| {name} | {row['estimated']:.0f} | {row['measured']:.0f} | {row['seconds']:.0f} | {steps} |"
            )
    return ["\n".join(rows)]


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.1f} ({row['ratios'][0]:.1f} to {row['ratios'][-1]:.1f})"


SECTIONS = {
    "ceilings": lambda of: ["; ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in of["gflops"].items()) + "."],
    "steps": _speed_steps,
    "quality": _speed_quality,
    "evaluation": _speed_evaluation,
    "precision": _speed_precision,
    "start": lambda of: [f"`medistill --help` answers in {of['medistill --help']['median']:.2f} s."],
    "memory": lambda of: [f"Distribution matching takes {of['ours']:.0f} MB, the plain loop {of['plain']:.0f} MB."],
    "estimates": _speed_estimates,
    "large": _speed_large,
}


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
    from medistill.store import Store
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
        "\n".join(f"- {s.text} [figures](#{_anchor(tables[s.table].title)})" for s in statements(cells(runs), runs)),
    ]
    for key in SHOWN:
        if key in tables:
            note = [tables[key].note] if tables[key].note else []
            parts += [f"## {tables[key].title}", *note, tables[key].markdown()]
    return "\n\n".join(parts) + "\n"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def summary() -> str:
    """The table in the README: the first package of the default for each set."""
    rows = [
        "| set | pixels of so many images per class | share of pixels | balanced accuracy: distilled / random / all "
        "| AUROC: distilled / random / all | gain over random | over random stored alike |",
        "|---" * 7 + "|",
    ]
    own = [c for c in compared() if (c["method"], c["seed"]) == ("default", 0)]
    for cell in sorted(own, key=lambda c: (c["set"], c["ipc"])):
        columns = [cell["set"], str(cell["ipc"]), _share(cell["compression"]["images"])]
        for metric in ("balanced_accuracy", "auroc"):
            means = [cell["arms"][arm][metric]["mean"] for arm in ("distilled", "random", "full")]
            columns.append("**{:.3f}** / {:.3f} / {:.3f}".format(*means))
        for gain in ("gain_over_random", "gain_over_random_stored_alike"):
            columns.append(with_interval(cell[gain]["balanced_accuracy"], "+.3f"))
        rows.append("| " + " | ".join(columns) + " |")
    return "\n".join(rows)


def readme() -> str:
    """The README with the table between its markers."""
    text = README.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- results -->\n).*?(\n<!-- end of results -->)", re.DOTALL)
    return marked.sub(lambda m: m[1] + summary() + m[2], text)


if __name__ == "__main__":
    (HERE / "results" / "main-job.md").write_text(page(), encoding="utf-8")
    (HERE / "results" / "methods.md").write_text(methods_page(), encoding="utf-8")
    if transfer_files():
        (HERE / "results" / "transfer.md").write_text(transfer_page(), encoding="utf-8")
    (HERE / "results" / "speed.md").write_text(speed_page(), encoding="utf-8")
    if BASIS.exists():
        (HERE / "guidelines.md").write_text(guidelines(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
