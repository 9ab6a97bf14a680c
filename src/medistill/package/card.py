"""The card: README.md of a package, written for somebody who has never heard of us."""

from __future__ import annotations

from importlib import resources

from medistill.numbers import with_interval
from medistill.types import Json

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC (macro)",
    "f1_macro": "F1 (macro)",
}


def card(manifest: Json) -> str:
    """The card's Markdown text, from the manifest's content alone."""
    import jinja2

    source = resources.files("medistill.package").joinpath("card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    template = environment.from_string(source)
    return template.render(
        m=manifest,
        channels=manifest["preprocessing"]["channels"],
        size=manifest["preprocessing"]["size"],
        metric_names=METRIC_NAMES,
        with_interval=with_interval,
        settings=sorted((k, v) for k, v in manifest["method"].items() if k not in ("name", "title", "bibtex")),
    )
