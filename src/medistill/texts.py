"""What the commands print for people; the same results as ``--json`` gives to programs."""

from __future__ import annotations

from medistill.numbers import with_interval
from medistill.types import Json

_NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auroc": "AUROC", "f1_macro": "F1"}


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    return "\n".join(lines)


def _value(summary: Json) -> str:
    return with_interval(summary, ".3f")


def check_text(result: Json) -> str:
    known = result["fingerprint"]
    lines = [
        f"{result['name']}: {len(result['classes'])} classes, {known['size'][0]}x{known['size'][1]} pixels, "
        f"{'gray' if known['channels'] == 1 else 'RGB'}, {known['dtype']}",
        *(f"  {s}: {v['images']} images, per class {v['per_class']}" for s, v in known["splits"].items()),
        f"  fingerprint {known['sha256']}",
        *(f"  note: {note}" for note in result["notes"]),
    ]
    lines += [f"{p['level']}: {p['kind']}: {p['found']}; {p['remedy']}" for p in result["problems"]]
    blocking = sum(p["level"] == "blocking" for p in result["problems"])
    lines.append(f"{blocking} blocking, {len(result['problems']) - blocking} warnings")
    return "\n".join(lines)


def distill_text(result: Json) -> str:
    cost = result["cost"] or {"seconds": 0, "peak_memory_mb": 0}
    lines = [
        f"package: {result['package']} ({result['images']} images, {result['bytes']} bytes, "
        f"{cost['seconds']} s, {cost['peak_memory_mb']:.0f} MB)"
    ]
    if result["contains_real_images"]:
        lines.append("attention: these are real patient images")
    if "evaluation" in result:
        lines.append(evaluate_text(result["evaluation"]))
    return "\n".join(lines)


def evaluate_text(result: Json) -> str:
    rows = [
        [arm, str(result["images"][arm]), *(_value(metrics[m]) for m in _NAMES)]
        for arm, metrics in result["arms"].items()
    ]
    gains = [with_interval(g, "+.3f") for g in result["gain_over_random"].values()]
    rows.append(["gain over random", "", *gains])
    if result["gain_over_random_stored_alike"]:
        alike = [with_interval(g, "+.3f") for g in result["gain_over_random_stored_alike"].values()]
        rows.append(["gain over random stored alike", "", *alike])
    for name in ("recovery", "recovery_above_chance"):
        shares = ["-" if v is None else f"{v:.1%}" for v in result[name].values()]
        rows.append([name.replace("_", " "), "", *shares])
    for net, scores in result["transfer"].items():
        for arm in scores["arms"]:
            values = [_value(scores["arms"][arm][m]) for m in _NAMES]
            rows.append([f"{net}: {arm}", str(result["images"][arm]), *values])
    lines = [_table(["arm", "images", *_NAMES.values()], rows)]
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def train_text(result: Json) -> str:
    lines = [f"trained {result['networks']} networks, tested on {result['test_images']} images of {result['data']}"]
    lines += [f"  {name}: {_value(result['metrics'][metric])}" for metric, name in _NAMES.items()]
    for name, recall in zip(result["class_names"], result["recall"], strict=True):
        lines.append(f"  recall of {name}: {'not in the data' if recall is None else format(recall, '.3f')}")
    lines += [f"note: {note}" for note in result["notes"]]
    if result["saved"]:
        lines.append(f"saved: {result['saved']}")
    return "\n".join(lines)


def verify_text(result: Json) -> str:
    kind = "real patient images" if result["contains_real_images"] else "distilled images"
    return (
        f"{result['package']} is whole and unaltered: {result['files']} files, {result['images']} {kind} "
        f"of {len(result['classes'])} classes, id {result['package_id'][:16]}"
    )


def methods_text(found: list[Json]) -> str:
    rows = []
    for m in found:
        real = "contains real patient images" if m["contains_real_images"] else (
            "starts from real images" if m["starts_from_real_images"] else "starts from noise"
        )  # fmt: skip
        rows.append([m["name"], m["kind"], m["cost"], real, m["title"]])
    return _table(["method", "kind", "cost", "real images", "title"], rows)


def demo_text(result: Json) -> str:
    other = result["other_site"]["balanced_accuracy"]
    return (
        f"{evaluate_text(result['evaluation'])}\n"
        f"trained on the package, tested on the other scanner: balanced accuracy {_value(other)}\n"
        f"package: {result['package']}\nreport: {result['report']}"
    )


def predict_text(result: Json) -> str:
    titles = {"balanced_accuracy": "balanced", "auroc": "AUROC", "recovery": "recovery", "gain": "gain over random"}
    styles = {"gain": "+.3f"}
    ordered = sorted(result["predictions"].items(), key=lambda item: -item[1]["balanced_accuracy"]["mean"])
    rows = [[name, *(with_interval(p[q], styles.get(q, ".3f")) for q in titles)] for name, p in ordered]
    known = result["learned_from"]
    return "\n".join(
        [
            _table(["expected of", *titles.values()], rows),
            f"{result['verdict']['code']}: {result['verdict']['words']}",
            f"learned from {known['runs']} runs on {known['data_sets']} data sets of {known['origins']} origins; in "
            "brackets: meant to hold 95 % of results on an origin like those of the studies",
        ]
    )


def study_text(result: Json) -> str:
    lines = [f"{result['runs']} runs planned, {result['done']} done, {result['failed']} failed; {result['db']}"]
    lines += [f"failed: {run}: {error.strip().splitlines()[-1]}" for run, error in result["errors"].items()]
    return "\n".join(lines)
