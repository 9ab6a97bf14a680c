"""How fast we are: against plain loops in the same run, and against what the machine can do.

    python benchmarks/bench.py [--data SET.npz] [--start noise|real] [SECTION ...]

Sections: ceilings, steps, quality, evaluation, contention, precision, start, memory, estimates, large; all
of them take some hours, most of it the plain loop's schedule in ``quality`` and ``contention``. Ratios are medians of
alternating rounds with their range; seconds are printed only to show what a ratio is made of. What
a section finds is added to ``benchmarks/results/MACHINE.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import bench_contention
import bench_loops as loops
import bench_memory
import torch
from torch.nn import functional

import medistill
from medistill.config import LabelConfig, Recipe
from medistill.data.image import decoded
from medistill.data.load import load
from medistill.data.preprocess import PreparedDataset, TensorSplit, prepare
from medistill.distil.optimiser import Optimiser
from medistill.distil.presets import default_settings
from medistill.distil.problem import DistillationProblem, make_problem
from medistill.evaluation.teachers import restored, soft_labels
from medistill.files import CACHE_VARIABLE, pretty_json, write_atomically
from medistill.runtime import has_bfloat16, prepare_torch

RESULTS = Path(__file__).parent / "results"
ROUNDS, EVALUATION_ROUNDS = 5, 3
PHANTOM = "phantom:classes=8,images=2000,size=28,colour=true"
LOOK_AT = (10, 25, 50, 100, 200, 400)
"""Steps of ours after which its quality is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ.get("MEDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data / "bloodcells_28.npz")
    parser.add_argument("--schedule", type=int, default=2000, help="steps of the plain loop in the section quality")
    parser.add_argument(
        "--start",
        choices=("noise", "real"),
        default="noise",
        help="first images of both loops in the section quality",
    )
    parser.add_argument("--note", default="", help="what readers of the figures should know, as a machine in use")
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all, if none is named")
    given = parser.parse_args()
    prepare_torch()
    given.source = str(given.data)
    if not given.data.exists():
        given.source = PHANTOM
        loops.say(f"{given.data} is not there, so {PHANTOM} is measured")
    prepared = prepare(load(given.source))
    machine = machine_name()
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in given.sections or SECTIONS:
        loops.say(f"\n{name}")
        found = SECTIONS[name](prepared, given)
        if not found:
            continue
        known[name] = {
            "date": datetime.date.today().isoformat(), "medistill": medistill.__version__, "torch": torch.__version__,
            "data": prepared.dataset.description.name, "threads": torch.get_num_threads(), **found,
            **({"note": given.note} if given.note else {}),
        }  # fmt: skip
        write_atomically(path, pretty_json({"machine": machine, **known}))
    loops.say(f"\n{path}")


def machine_name() -> str:
    """What computes; virtual processors of one name may differ in what they compute in, and so in every ratio."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    name = cpu[1] if cpu else platform.processor() or platform.machine()
    return name if has_bfloat16() else f"{name} without bfloat16"


def precisions() -> tuple[str, ...]:
    """Those that the machine computes in; where only software multiplies in bfloat16, that takes minutes."""
    return ("float32", "bfloat16") if has_bfloat16() else ("float32",)


def compared(
    name: str,
    plain: Callable[[], object],
    ours: Callable[[], object],
    rounds: int = ROUNDS,
    before_ours: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Alternating rounds of both, after one of each that does not count."""
    plain(), ours()
    return compared_ways(plain, {name: ours}, rounds, before_ours)[name]


def compared_ways(
    plain: Callable[[], object],
    ways: dict[str, Callable[[], object]],
    rounds: int,
    before_ours: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Rounds of the plain loop and of each of ours, in turn; ``before_ours`` counts for neither."""
    took = []
    for _ in range(rounds):
        first = loops.seconds(plain)
        before_ours()
        took.append((first, *(loops.seconds(ours) for ours in ways.values())))
    first, *others = (list(column) for column in zip(*took, strict=True))
    found = {}
    for name, own in zip(ways, others, strict=True):
        ratios = sorted(p / o for p, o in zip(first, own, strict=True))
        middle = statistics.median(first), statistics.median(own)
        loops.say(
            f"{name}: {statistics.median(ratios):.1f} times the plain loop ({ratios[0]:.1f} to {ratios[-1]:.1f}); "
            f"{middle[0]:.2f} s against {middle[1]:.2f} s"
        )
        found[name] = {
            "ratio": statistics.median(ratios), "ratios": ratios,
            "plain_seconds": middle[0], "our_seconds": middle[1], "our_rounds": own,
        }  # fmt: skip
    return found


def ceilings(_prepared: PreparedDataset, _given: argparse.Namespace) -> dict[str, Any]:
    """Billions of operations a second of a large matrix product and a large convolution."""
    found = {}
    square, images, kernel = torch.randn(2048, 2048), torch.randn(128, 64, 32, 32), torch.randn(64, 64, 3, 3)
    with torch.inference_mode():
        for kind in (getattr(torch, name) for name in precisions()):
            a, x, w = square.to(kind), images.to(kind), kernel.to(kind)
            for name, operations, work in (
                ("matrix product", 2 * 2048**3, lambda a=a: a @ a),
                ("convolution", 2 * 128 * 32 * 32 * 64 * 64 * 9, lambda x=x, w=w: functional.conv2d(x, w, padding=1)),
            ):
                work()
                best = min(loops.seconds(work) for _ in range(7))
                found[f"{name} {str(kind).removeprefix('torch.')}"] = operations / best / 1e9
    for name, value in found.items():
        loops.say(f"{name}: {value:.0f} GFLOP/s")
    return {"gflops": found}


def convolution_rate() -> float:
    """Billions of operations a second of a large float32 convolution that goes on for a second, as a round does:
    on a shared machine short bursts are faster than anything that lasts.
    """
    x, w = torch.randn(128, 64, 32, 32), torch.randn(64, 64, 3, 3)
    done, started = 0, time.perf_counter()
    with torch.inference_mode():
        while (passed := time.perf_counter() - started) < 1:
            functional.conv2d(x, w, padding=1)
            done += 1
    return done * 2 * 128 * 32 * 32 * 64 * 64 * 9 / passed / 1e9


def convolutions(problem: DistillationProblem, synthetic: int, real: int) -> float:
    """Operations of a step's convolutions: forward for all, backward to the images for the synthetic ones."""
    side, fan, forward = -(-problem.shape[0] // 8) * 8, problem.channels, 0
    for _ in range(3):
        forward += 2 * side * side * 9 * fan * loops.FILTERS
        side, fan = side // 2, loops.FILTERS
    return forward * (2 * synthetic + real)


def steps(prepared: PreparedDataset, _given: argparse.Namespace) -> dict[str, Any]:
    """Steps per second at the same loss; networks are met again as often as in a whole run."""
    found: dict[str, Any] = {}
    for (title, factor, again), precision in product(
        (("dm, ten images per class", 1, 4), ("the default's images", 2, 2)), precisions()
    ):
        name = title if precision == precisions()[-1] else f"{title}, {precision}"
        problem, count = make_problem(prepared, 10, None, factor), 8
        settings = {**loops.DM, "iterations": count, "networks": count // again, "precision": precision}
        reached: list[float] = []
        row = compared(
            name, lambda p=problem, n=count: loops.plain_dm(p, n), lambda p=problem, s=settings: loops.ours(p, s),
            before_ours=lambda r=reached: r.append(convolution_rate()),
        )  # fmt: skip
        real = sum(min(size, loops.REAL_BATCH) for size in problem.real_per_stratum) / again
        work = convolutions(problem, sum(problem.synthetic_per_stratum), int(real)) * count / 1e9
        # The machine's speed changes from minute to minute: each round is held against what was reached just before.
        shares = [work / own / rate for own, rate in zip(row["our_rounds"], reached, strict=True)]
        share = row["share_of_float32_convolution_ceiling"] = statistics.median(shares)
        loops.say(f"  {share:.0%} ({min(shares):.0%} to {max(shares):.0%}) of a large float32 convolution's rate")
        found[name] = row
    found["dc"] = dc_steps(prepared)
    return found


def dc_steps(prepared: PreparedDataset) -> dict[str, Any]:
    """Gradient matching with the network's own steps."""
    problem = make_problem(prepared, 10, None)
    settings = {
        "name": "dc", "filters": loops.FILTERS, "iterations": 1, "outer_loops": 3, "inner_loops": 10,
        "precision": "auto",
    }  # fmt: skip
    optimiser = Optimiser(learning_rate=loops.IMAGE_RATE, momentum=loops.MOMENTUM)
    return compared(
        "dc, ten images per class",
        lambda: loops.plain_dc(problem, 1, 3, 10),
        lambda: loops.ours(problem, settings, optimiser=optimiser),
        rounds=5,
    )


def quality(prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds until networks trained on our images are as good on validation images as on the plain loop's last."""
    problem = make_problem(prepared, 10, None)
    images: list[torch.Tensor] = []
    taken = loops.seconds(lambda: images.append(loops.plain_dm(problem, given.schedule, start=given.start)))
    wanted, _ = score(prepared, problem, images[0], soft=False)
    loops.say(f"plain loop: balanced accuracy {wanted:.3f} after {given.schedule} steps and {taken:.0f} s")
    found: dict[str, Any] = {
        "start": given.start,
        "plain": {"steps": given.schedule, "seconds": taken, "balanced_accuracy": wanted},
    }
    for name, factor, total, soft in (("dm", 1, 400, False), ("the default", 2, 200, True)):
        settings = {**loops.DM, "iterations": total, "start": given.start, "precision": "auto"}
        row = reach(prepared, make_problem(prepared, 10, None, factor), settings, soft, wanted)
        row["ratio"] = taken / row["seconds"] if row["balanced_accuracy"] >= wanted else None
        loops.say(f"{name}: " + ("not reached" if row["ratio"] is None else f"{row['ratio']:.1f} times less time"))
        found[name] = row
    return found


def score(
    prepared: PreparedDataset, problem: DistillationProblem, stored: torch.Tensor, soft: bool
) -> tuple[float, float]:
    """Mean balanced accuracy of four networks on validation images, and the seconds that labels took."""
    pixels, spent = decoded(problem.quantise(stored).numpy(), problem.shape), 0.0
    data, task, own = TensorSplit(pixels, problem.targets.numpy()), prepared.task, prepared.normalisation
    if soft:
        started = time.perf_counter()
        labels = LabelConfig.model_validate(default_settings()["labels"])
        (said,) = soft_labels(prepared.train, [data], task, own, labels, 0)
        data, spent = data.with_soft_labels(restored(task, said)), time.perf_counter() - started
    return statistics.mean(loops.our_training(data, prepared.splits["val"], task, own, Recipe(), 4)), spent


def reach(
    prepared: PreparedDataset, problem: DistillationProblem, settings: dict[str, Any], soft: bool, wanted: float
) -> dict[str, Any]:
    """Our loop until its quality is the one wanted; its seconds without those spent on measuring."""
    row: dict[str, Any] = {}
    looking = labelling = 0.0
    with tempfile.TemporaryDirectory() as empty:
        os.environ[CACHE_VARIABLE] = empty  # teachers are trained here, not found
        started = time.perf_counter()

        def look(step: int, stored: torch.Tensor) -> bool:
            nonlocal looking, labelling
            if step not in LOOK_AT:
                return True
            now = time.perf_counter()
            reached, spent = score(prepared, problem, stored, soft)
            labelling = max(labelling, spent)  # what the teachers took is spent once and belongs to every look
            row.update(steps=step, seconds=now - started - looking + labelling, balanced_accuracy=reached)
            loops.say(f"  step {step}: {reached:.3f} after {row['seconds']:.0f} s")
            looking += time.perf_counter() - now
            return reached < wanted

        loops.ours(problem, settings, look)
    return row


def evaluation(prepared: PreparedDataset, _given: argparse.Namespace) -> dict[str, Any]:
    """Five networks by one recipe: one after the other out of torch's modules, and ours side by side."""
    data = loops.random_images(make_problem(prepared, 10, None))
    common = (data, prepared.splits["val"], prepared.task, prepared.normalisation)

    def ours(precision: str) -> Callable[[], object]:
        return lambda: loops.our_training(*common, Recipe(precision=precision), 5)

    def one_after_the_other() -> None:
        for seed in range(5):
            loops.plain_training(*common, Recipe(), seed)

    # A round takes minutes, so that what is slow the first time does not count for much.
    loops.say("five networks on ten random images per class, ours in")
    return compared_ways(one_after_the_other, {p: ours(p) for p in precisions()}, EVALUATION_ROUNDS)


PRECISION_SETS = ("pneumoniamnist", "breastmnist", "bloodcells_28")


def precision(_prepared: PreparedDataset, given: argparse.Namespace) -> dict[str, Any]:
    """Balanced accuracy on validation images of networks trained in float32 and, alike but for that, in bfloat16."""
    found = {}
    for name in PRECISION_SETS:
        if (file := loops.set_beside(given.data, name)) is None:
            continue
        prepared = prepare(load(file))
        common = (prepared.splits["val"], prepared.task, prepared.normalisation)
        for title, data, networks in (
            ("ten random images per class", loops.random_images(make_problem(prepared, 10, None)), 6),
            ("all training images", prepared.train, 2),
        ):
            scores = {
                kind: loops.our_training(data, *common, Recipe(precision=kind), networks)
                for kind in ("float32", "bfloat16")
            }
            found[f"{name}, {title}"] = scores
            loops.say(f"{name}, {title}: " + ", ".join(f"{k} {statistics.mean(v):.3f}" for k, v in scores.items()))
    return found


def start(_prepared: PreparedDataset, _given: argparse.Namespace) -> dict[str, Any]:
    """Seconds until the command answers, beside the bare interpreter."""
    found = {}
    command = [str(Path(sys.executable).with_name("medistill")), "--help"]
    for name, words in (("medistill --help", command), ("python alone", [sys.executable, "-c", ""])):
        times = [
            loops.seconds(lambda w=words: subprocess.run(w, check=True, stdout=subprocess.PIPE)) for _ in range(9)
        ]
        found[name] = {"median": statistics.median(times), "least": min(times), "most": max(times)}
        loops.say(f"{name}: {found[name]['median']:.2f} s ({min(times):.2f} to {max(times):.2f})")
    return found


SECTIONS: dict[str, Callable[[PreparedDataset, argparse.Namespace], dict[str, Any]]] = {
    "ceilings": ceilings, "steps": steps, "quality": quality,
    "evaluation": evaluation, "contention": bench_contention.contention, "precision": precision, "start": start,
    "memory": bench_memory.memory, "estimates": bench_memory.estimates, "large": bench_memory.large,
}  # fmt: skip


if __name__ == "__main__":
    main()
