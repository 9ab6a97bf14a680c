"""The page of audits of packages made in several ways, written to a file by ``make_results.py``."""

from __future__ import annotations

from typing import Any

TITLES = {
    "default": "default",
    "default, real first images": "default with `start=real`",
    "dm": "`dm`",
    "random": "random",
    "random, soft labels": "random, soft labels",
    "epsilon 8": "`--epsilon 8`",
    "epsilon 1": "`--epsilon 1`",
}
"""Ways of ``benchmarks/audits_table.py``, in the order of the columns."""

DETAILS = (
    ("- found at 0.1 % false alarms", "strongest", "tpr_0.001"),
    ("- found at 1 % false alarms", "strongest", "tpr_0.01"),
    ("- success on the most vulnerable", "most_vulnerable", "success"),
    ("- area, networks of random images", "lira on random", "auc"),
    ("- area, the same with the package's storage and labels", "lira on random_matched", "auc"),
    ("- area, positive control", "positive_control", "auc"),
)
"""Of the membership check: what the strongest attack finds, and the controls."""

INTRODUCTION = """# Audits

Every check of `medistill audit` on packages of ten images per class made in seven ways, with the options that checks
have if nobody names any, by `benchmarks/audits_table.py`. In brackets the 95 % interval. *random* are real training
images, as they are; *random, soft labels* the same at the size and with the labels of the default. What each check
measures and when it warns or fails is in [what a package gives away](../explanation/privacy.md#audits).
"""


def audits_page(cells: list[dict[str, Any]]) -> str:
    """docs/results/audits.md, from what ``benchmarks/audits_table.py`` measured."""
    parts = [INTRODUCTION]
    for data in dict.fromkeys(cell["set"] for cell in cells):
        own = [cell for way in TITLES for cell in cells if cell["set"] == data and cell["way"] == way]
        parts += [f"\n## `{data}`\n", *_table(own), *_missing(own)]
    return "\n".join(parts) + "\n"


def _table(own: list[dict[str, Any]]) -> list[str]:
    found = [{finding["name"]: finding for finding in cell["audits"]} for cell in own]
    rows = ["| check | " + " | ".join(TITLES[cell["way"]] for cell in own) + " |", "|---" * (len(own) + 1) + "|"]
    for name in dict.fromkeys(name for findings in found for name in findings):
        rows.append(f"| `{name}` | " + " | ".join(_told(findings.get(name)) for findings in found) + " |")
        if name == "membership":
            for title, where, what in DETAILS:
                rows.append(f"| {title} | " + " | ".join(_detail(f.get(name), where, what) for f in found) + " |")
    rows.append("| images that a check calls real | " + " | ".join(_real(findings) for findings in found) + " |")
    rows.append("| seconds of the audit | " + " | ".join(f"{cell['seconds']:.0f}" for cell in own) + " |")
    rows.append("| its peak memory, MB | " + " | ".join(f"{cell['peak_memory_mb']:.0f}" for cell in own) + " |")
    return rows


def _told(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return "not measured"
    value = "" if finding["value"] is None else f"{finding['value']:.3g}"
    if finding["interval"] is not None:
        value += " [{:.3g}, {:.3g}]".format(*finding["interval"])
    return f"{value}, {finding['verdict']}".removeprefix(", ")


def _detail(finding: dict[str, Any] | None, where: str, what: str) -> str:
    if finding is None:
        return "-"
    details = finding["details"]
    of = details.get(details["strongest"] if where == "strongest" else where, {})
    return "-" if of.get(what) is None else f"{of[what]:.3g}"


def _real(findings: dict[str, Any]) -> str:
    return str(max((finding["real_images"] for finding in findings.values()), default=0))


def _missing(own: list[dict[str, Any]]) -> list[str]:
    reasons = dict.fromkeys(
        f"- `{name}`, {TITLES[cell['way']]}: {why}" for cell in own for name, why in cell["not_measured"].items()
    )
    return ["", "Not measured:", "", *reasons] if reasons else []
