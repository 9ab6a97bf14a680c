"""``demo``: the main job from end to end on generated images, with nothing to prepare."""

from __future__ import annotations

from pathlib import Path

from medistill.aliases import Json
from medistill.commands.check import check
from medistill.commands.distill import distill
from medistill.commands.report import report
from medistill.commands.train import train
from medistill.commands.verify import verify
from medistill.config import EvaluateConfig, Recipe
from medistill.progress import say

SITE_A = "phantom:site=a"
SITE_B = "phantom:site=b"
RECIPE = Recipe(min_steps=200, max_steps=600, width=24)
"""Fewer steps and a smaller network than the recommended ones, so that the demo ends within two minutes."""

SETTINGS: Json = {
    "method": {"iterations": 250, "networks": 40, "real_batch": 128, "filters": 32},
    "labels": {"recipe": RECIPE.model_dump(mode="json")},
}
"""The recommended configuration, cut for the same reason."""

QUICK = EvaluateConfig(recipe=RECIPE, repeats=2, random_draws=3)

IPC = 5


def demo(*, out: str | Path = "demo", seed: int = 0, overwrite: bool = False, progress: bool = False) -> Json:
    """Distil phantom images of one scanner, evaluate, verify, train for another scanner, report.

    Args:
        out: folder for the package and the report.
        seed: of everything random.
        overwrite: start over.
        progress: show progress on standard error.

    Returns:
        ``report`` (path of the page), ``package``, ``evaluation`` and ``other_site``.
    """
    out = Path(out)
    package = out / "package"
    say(f"1 check      {SITE_A}", progress)
    checked = check(SITE_A, ipc=IPC)
    say(f"2 distil     {IPC} images per class -> {package}", progress)
    made = distill(SITE_A, out=package, ipc=IPC, seed=seed, settings=SETTINGS, overwrite=overwrite, progress=progress)
    say("3 evaluate   beside random images and the full data", progress)
    page = report(package, on=SITE_A, out=out / "report.html", config=QUICK, progress=progress)
    say("4 verify     as the recipient would", progress)
    verified = verify(package)
    say(f"5 train      on the package alone, tested on another scanner ({SITE_B})", progress)
    other = train(package, on=SITE_B, config=QUICK, progress=progress)
    return {
        "report": page["report"],
        "package": str(package),
        "package_id": verified["package_id"],
        "fingerprint": checked["fingerprint"],
        "images": made["images"],
        "audits": made["audits"],
        "evaluation": page["evaluation"],
        "other_site": other["metrics"],
    }
