"""What the commands print for people; the same results as ``--json`` gives to programs."""

from __future__ import annotations

from medistill.aliases import Json
from medistill.formatting import with_interval
from medistill.tasks.task import make_task


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    return "\n".join(lines)


def _value(summary: Json) -> str:
    return with_interval(summary, ".3f")


def _metrics(result: Json) -> dict[str, str]:
    """Short names of the metrics of a result's task."""
    return {metric.name: metric.short for metric in make_task(result["task"], result["class_names"]).metrics}


def check_text(result: Json) -> str:
    fingerprint = result["fingerprint"]
    task = make_task(result["task"], result["classes"])
    shape = "x".join(map(str, fingerprint["shape"]))
    lines = [
        f"{result['name']}: {task.title}, {task.outputs} {task.plural}, {shape} pixels, "
        f"{'gray' if fingerprint['channels'] == 1 else 'RGB'}, {fingerprint['dtype']}",
        *(
            f"  {split}: {v['images']} images; "
            + ", ".join(f"{name} {n}" for name, n in zip(result["strata"], v["per_stratum"], strict=True))
            for split, v in fingerprint["splits"].items()
        ),
        *_overview(result["overview"]),
        f"  fingerprint {fingerprint['sha256']}",
        *(f"  note: {note}" for note in result["notes"]),
    ]
    lines += [f"{p['level']}: {p['kind']}: {p['found']}{_file(p)}; {p['remedy']}" for p in result["problems"]]
    lines += _privacy(result) + offer_text(result)
    lines += [f"page: {result['html']}"] if "html" in result else []
    blocking = sum(p["level"] == "blocking" for p in result["problems"])
    lines.append(f"{blocking} blocking, {len(result['problems']) - blocking} warnings")
    return "\n".join(lines)


def _file(problem: Json) -> str:
    """The first file that a problem is about."""
    return f" ({problem['files'][0]})" if problem.get("files") else ""


def _overview(view: Json) -> list[str]:
    """Patients, sites, sizes, spacing, where they are known."""
    lines = []
    if view["patients"]:
        lines.append("  patients: " + ", ".join(f"{split} {number}" for split, number in view["patients"].items()))
    for title, counts in (
        ("sites", {name: sum(own["images"].values()) for name, own in view["sites"].items()}),
        ("sizes of the files", view["sizes"]),
    ):
        if counts:
            shown = [f"{name} {number}" for name, number in list(counts.items())[:5]]
            lines.append(f"  {title}: {', '.join(shown)}" + (", ..." if len(counts) > 5 else ""))
    if view["spacing"]:
        lines.append(f"  spacing: {' x '.join(f'{step:g}' for step in view['spacing'])} mm")
    return lines


def _privacy(result: Json) -> list[str]:
    """Which ε a data set can bear, where that was asked."""
    if "privacy" not in result:
        return []
    told = result["privacy"]
    worst = max(told["noise"], key=lambda stratum: told["noise"][stratum])
    least = told["least_epsilon"]
    return [
        f"privacy: ε = {told['epsilon']:g} per {told['unit']} adds noise of {told['noise'][worst]:.2g} times the "
        f"longest embedding to the mean of '{worst}', the most of all: "
        + ("the noise costs little" if told["bearable"] else "expect a loss by noise, ")
        + ("" if told["bearable"] else f"{'no ε up to 20' if least is None else f'ε = {least:g}'} would do without")
    ]


def offer_text(result: Json) -> list[str]:
    """Which guarantee could be had, where none was asked for and one can be given."""
    if not result.get("offer"):
        return []
    told = result["offer"]
    could = (
        "these data bear the noise of no ε up to 20, having too few images of some class"
        if told["epsilon"] is None
        else f"the noise of --epsilon {told['epsilon']:g} (per {told['unit']}) would cost little here; its hard "
        "labels may cost more"
    )
    return [f"privacy: without --epsilon nothing is guaranteed; {could}"]


def _findings(result: Json) -> list[str]:
    return [f"{finding['title'].lower()}: {finding['explanation']}" for finding in result["audits"]]


def audit_text(result: Json) -> str:
    lines = [f"{f['verdict']}: {f['title']}: {f['explanation']}" for f in result["audits"]]
    lines += [f"not measured: {name}: {reason}" for name, reason in result["not_measured"].items()]
    verdicts = [finding["verdict"] for finding in result["audits"]]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("pass", "warn", "fail"))
    return "\n".join([*lines, f"{len(verdicts)} checks: {counts}"])


def distill_text(result: Json) -> str:
    cost = result["cost"] or {"seconds": 0, "peak_memory_mb": 0}
    lines = [
        f"package: {result['package']} ({result['images']} images, {result['bytes']} bytes, "
        f"{cost['seconds']} s, {cost['peak_memory_mb']:.0f} MB)",
        *_findings(result),
    ]
    lines += result["guarantee"][:1] + offer_text(result)  # the card has the rest
    if result["contains_real_images"]:
        lines.append("attention: these are real patient images")
    if "evaluation" in result:
        lines.append(evaluate_text(result["evaluation"]))
    return "\n".join(lines)


def evaluate_text(result: Json) -> str:
    names = _metrics(result)
    rows = [
        [arm, str(result["images"][arm]), *(with_interval(metrics[m]) for m in names)]
        for arm, metrics in result["arms"].items()
    ]
    for title, gains in (
        ("gain over random", result["gain_over_random"]),
        ("gain over random_matched", result["gain_over_random_matched"]),
    ):
        if gains:
            rows.append([title, "", *(with_interval(gains[m], "+.3f") for m in names)])
    for name in ("recovery", "recovery_above_baseline"):
        shares = ["-" if result[name][m] is None else f"{result[name][m]:.1%}" for m in names]
        rows.append([name.replace("_", " "), "", *shares])
    for architecture, scores in result["transfer"].items():
        for arm in scores["arms"]:
            values = [with_interval(scores["arms"][arm][m]) for m in names]
            rows.append([f"{architecture}: {arm}", str(result["images"][arm]), *values])
    lines = [_table(["arm", "images", *names.values()], rows)]
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def train_text(result: Json) -> str:
    lines = [f"trained {result['repeats']} networks, tested on {result['test_images']} images of {result['data']}"]
    lines += [f"  {short}: {with_interval(result['metrics'][name])}" for name, short in _metrics(result).items()]
    for name, recall in zip(result["class_names"], result["recall"], strict=True):
        lines.append(f"  recall of {name}: {'not in the data' if recall is None else format(recall, '.3f')}")
    lines += [f"note: {note}" for note in result["notes"]]
    if result["saved"]:
        lines.append(f"saved: {result['saved']}")
    return "\n".join(lines)


def verify_text(result: Json) -> str:
    kind = "real patient images" if result["contains_real_images"] else "distilled images"
    task = make_task(result["task"], result["classes"])
    line = (
        f"{result['package']} is whole and unaltered: {result['files']} files, {result['images']} {kind} "
        f"of {task.outputs} {task.plural}, id {result['package_id'][:16]}"
    )
    return "\n".join([line, *result["guarantee"][:1], *_findings(result)])


def methods_text(methods: list[Json]) -> str:
    rows = []
    for m in methods:
        real = "contains real patient images" if m["contains_real_images"] else (
            "starts from real images" if m["starts_from_real_images"] else "starts from noise"
        )  # fmt: skip
        rows.append([m["name"], m["kind"], m["cost"], real, ", ".join(m["queries"]), m["title"]])
    return _table(["method", "kind", "cost", "real images", "asks them for", "title"], rows)


def demo_text(result: Json) -> str:
    other = result["other_site"]["balanced_accuracy"]
    return (
        f"{evaluate_text(result['evaluation'])}\n"
        + "".join(f"{line}\n" for line in _findings(result))
        + f"trained on the package, tested on the other scanner: balanced accuracy {with_interval(other)}\n"
        f"package: {result['package']}\nreport: {result['report']}"
    )


def predict_text(result: Json) -> str:
    titles = {"balanced_accuracy": "balanced", "auroc": "AUROC", "recovery": "recovery", "gain": "gain over random"}
    styles = {"gain": "+.3f"}
    ordered = sorted(result["predictions"].items(), key=lambda item: -item[1]["balanced_accuracy"]["mean"])
    rows = [[name, *(with_interval(p[q], styles.get(q, ".3f")) for q in titles)] for name, p in ordered]
    basis = result["learned_from"]
    return "\n".join(
        [
            _table(["expected of", *titles.values()], rows),
            f"{result['verdict']['code']}: {result['verdict']['words']}",
            *_privacy(result),
            *(f"note: {note}" for note in result["notes"]),
            f"learned from {basis['runs']} runs on {basis['data_sets']} data sets of {basis['origins']} origins; in "
            "brackets: meant to hold 95 % of results on an origin like those of the studies",
        ]
    )


def study_text(result: Json) -> str:
    lines = [f"{result['runs']} runs planned, {result['done']} done, {result['failed']} failed; {result['db']}"]
    lines += [f"failed: {run}: {error.strip().splitlines()[-1]}" for run, error in result["errors"].items()]
    return "\n".join(lines)
