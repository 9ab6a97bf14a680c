"""The page of speed and memory, written from what the benchmark measured. ``make_results.py`` writes it to a file."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from medistill.package.upgrade import RECIPE

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def speed_page() -> str:
    """docs/results/speed.md."""
    parts = [
        "# Speed and memory",
        "Measured by `make bench` (`benchmarks/bench.py`; what it wrote lies in `benchmarks/results`). Ratios "
        "of steps and of evaluation are of alternating rounds in one run, medians with their range; quality "
        "is one run of each, over when it is first as good as the plain loop after its 2000 steps (the "
        "published schedule has 20,000). The plain loop is written from the papers, as the published programs "
        "work, in float32: a new network at each step, a loop over classes, nothing kept. Rows that name no "
        "precision are in bfloat16 where the processor computes in it, as the default was until it took float32 "
        "on every CPU; `--method dm` is float32 unless asked otherwise, and so are evaluations. The rate that "
        "shares are of is always float32's, and operations are counted as convolutions are defined: tiles, which "
        "need a quarter of the products, can take the share above 100 %. Notes of older figures "
        "tell where nothing was compiled yet. "
        "Older figures are also of methods that began with real images (start: real), as both loops did; that "
        "changes what is reached, not what a step takes.",
    ]
    for file in sorted(RESULTS.glob("*.json")):
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
        f"validation images after {plain['steps']} steps (start: {of.get('start', 'real')}, on both sides).",
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


def _speed_contention(of: dict[str, Any]) -> list[str]:
    """A row for each command on each set; ratios that were not measured there have a dash."""
    commands = {name: row for name, row in of.items() if isinstance(row, dict)}
    ratios = list(dict.fromkeys(name for row in commands.values() for name in row if name != "seconds"))
    rows = [
        "Ratios of wall-clock seconds, medians of rounds with their range: the default with fewer steps, two "
        "teachers included, and the evaluation of its package.\n",
        f"| command | {' | '.join(ratios)} |", "|---" * (1 + len(ratios)) + "|",
    ]  # fmt: skip
    for name, row in commands.items():
        values = [_ratio(row[ratio], ".2f") if ratio in row else "-" for ratio in ratios]
        rows.append(f"| {name} | {' | '.join(values)} |")
    return ["\n".join(rows)]


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
    rows = ["| `distill` | estimated MB | measured MB | | estimated s | measured s | |", "|---" * 7 + "|"]
    for name, row in of.items():
        if isinstance(row, dict):
            guess, peak = row["estimated"], row["measured"]
            line = f"| `{_renamed(name)}` | {guess:.0f} | {peak:.0f} | {guess / peak - 1:+.0%} "
            if "measured_seconds" in row:
                guess, took = row["estimated_seconds"], row["measured_seconds"]
                line += f"| {guess:.0f} | {took:.0f} | {guess / took - 1:+.0%} |"
            rows.append(line if line.endswith("|") else f"{line}| - | - | - |")
    return ["\n".join(rows)]


def _speed_large(of: dict[str, Any]) -> list[str]:
    rows = [
        "The default at ten images per class on made-up sets, with `--memory-limit 4GB`:\n",
        "| set | estimated MB | measured MB | seconds | steps |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in of.items():
        if isinstance(row, dict):
            steps = f"few: `{_renamed(row['options'])}`" if row["options"] else "all"
            if "refused" in row:
                rows.append(f"| {name} | refused: `{row['refused'].removeprefix('medistill: ')}` | - | - | - |")
                continue
            rows.append(
                f"| {name} | {row['estimated']:.0f} | {row['measured']:.0f} | {row['seconds']:.0f} | {steps} |"
            )
    return ["\n".join(rows)]


def _renamed(options: str) -> str:
    """Options of ``distill`` under the names of now."""
    for old, new in RECIPE.items():
        options = options.replace(f"recipe.{old}=", f"recipe.{new}=")
    return options


def _ratio(row: dict[str, Any], form: str = ".1f") -> str:
    return f"{row['ratio']:{form}} ({row['ratios'][0]:{form}} to {row['ratios'][-1]:{form}})"


SECTIONS = {
    "ceilings": lambda of: ["; ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in of["gflops"].items()) + "."],
    "steps": _speed_steps,
    "quality": _speed_quality,
    "evaluation": _speed_evaluation,
    "contention": _speed_contention,
    "precision": _speed_precision,
    "start": lambda of: [f"`medistill --help` answers in {of['medistill --help']['median']:.2f} s."],
    "memory": lambda of: [f"Distribution matching takes {of['ours']:.0f} MB, the plain loop {of['plain']:.0f} MB."],
    "estimates": _speed_estimates,
    "large": _speed_large,
}
