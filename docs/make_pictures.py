"""Draw the pictures of the docs from the phantom. Run by ``make docs``."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import medistill
from medistill.aliases import Pixels
from medistill.commands.demo import IPC, QUICK, SETTINGS, SITE_A
from medistill.package.package import read_package
from medistill.package.results import EvaluationResult
from medistill.reporting.figures import image_grid

HERE = Path(__file__).parent
ARMS = ("distilled", "random", "random_matched", "full")


def main() -> None:
    """Distil and evaluate as the demo does, and draw real images, distilled images and scores."""
    with tempfile.TemporaryDirectory() as folder:
        medistill.distill(SITE_A, out=Path(folder) / "p", ipc=IPC, settings=SETTINGS, progress=True)
        measured = medistill.evaluate(Path(folder) / "p", on=SITE_A, config=QUICK, progress=True)
        package = read_package(Path(folder) / "p")
    prepared, shown = medistill.prepare(medistill.load(SITE_A)), package.data
    train, groups = prepared.train, []
    for stratum, members in enumerate(prepared.task.membership(train.targets).T):
        groups += [train.pixels[members][:IPC], shown.pixels[package.strata == stratum][:IPC]]
    pictures = [
        np.asarray(Image.open(io.BytesIO(image_grid(groups[i : i + 2], 2, IPC)))) for i in range(0, len(groups), 2)
    ]
    gap = np.full((pictures[0].shape[0], 16, 3), 255, np.uint8)
    row = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
    chart = _chart(EvaluationResult.model_validate(measured), row.shape[1])
    out = HERE / "images" / "phantom.png"
    out.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate([row, np.full((12, row.shape[1], 3), 255, np.uint8), chart])).save(
        out, optimize=True
    )
    print(out)


def _chart(result: EvaluationResult, width: int) -> Pixels:
    """The bars of the report as pixels of that width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from medistill.reporting.figures import STYLES
    from medistill.reporting.words import titles

    figure = Figure(figsize=(width / 120, 2.3), dpi=120, layout="constrained")
    axes, named = figure.subplots(), titles(result)
    for place, arm in enumerate(ARMS):
        value, style = result.arms[arm]["balanced_accuracy"], STYLES[arm]
        assert value.mean is not None and value.ci95 is not None
        axes.barh(-place, value.mean, 0.6, color="white", edgecolor=style["color"], hatch=style["hatch"])
        axes.plot(value.ci95, [-place] * 2, color="black", linewidth=2)
        label = f"{named[arm]} ({result.images[arm]})"
        axes.text(0.01, -place, label, va="center", fontsize=7, backgroundcolor="white")
        axes.text(value.ci95[1] + 0.01, -place, f"{value.mean:.3f}", va="center", fontsize=7)
    axes.set_xlim(0, 1.05)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("balanced accuracy on test images, 95 % interval", fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3][:, :width]


if __name__ == "__main__":
    main()
