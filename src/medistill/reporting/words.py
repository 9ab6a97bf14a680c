"""The verdict in words, decided by rules on the figures and nothing else."""

from __future__ import annotations

from medistill.data.checks import FEW_TESTED
from medistill.types import Json

GOOD_RECOVERY = 0.90
"""Share of full training's score, above chance, that counts as standing in for the data."""

ARM_TITLES = {
    "distilled": "This package",
    "random": "Random real images, same number",
    "random_stored_alike": "Random real images, stored alike",
    "full": "All training images",
    "full_balanced": "Training images, classes balanced",
}


def titles(result: Json) -> dict[str, str]:
    """Titles of the arms that a result has, in the order of tables."""
    own = ARM_TITLES | {"random": f"Random real images, same {_measure(result)}"}
    return {arm: title for arm, title in own.items() if arm in result["arms"]}


def _measure(result: Json) -> str:
    """In what the package and random images are equal: their number, unless the package's are smaller."""
    compression = result["compression"]
    return "bytes" if compression["stored_images"] > compression["images"] else "number"


def verdict(result: Json, coreset: bool) -> list[str]:
    """Sentences that say what the package is worth, most important first.

    Judged on balanced accuracy: its recovery above chance, and whether the interval of the
    gain over random images lies above zero.
    """
    metric = "balanced_accuracy"
    plain, above = result["recovery"][metric], result["recovery_above_chance"][metric]
    gain = result["gain_over_random"][metric]
    low, high = gain["ci95"]
    arms = result["arms"]
    alike = result.get("gain_over_random_stored_alike")
    what = "chosen real" if coreset else "distilled"
    images, share = result["images"]["distilled"], result["compression"]["images"]
    equal = _measure(result)
    smaller = ", stored smaller," if equal == "bytes" else ""
    same = result["data"]["same_as_distilled"]
    unit = "the pixels of" if smaller else "the number in"
    whole = "the original" if same and not smaller else f"{unit} {'the original' if same else result['data']['name']}"
    sentences = []
    if not same:
        sentences.append(
            f"This was measured on {result['data']['name']}, which is not the data that the package was made from."
        )
    if above is None:
        sentences.append(
            "Full training itself is not surely better than guessing here, so nothing can be said about distilling: "
            "look at the data and labels first."
        )
    else:
        tested = result["test_images"]
        opening = (
            f"With {tested} test {'image' if tested == 1 else 'images'} nothing can be said of its worth"
            if tested < FEW_TESTED
            else "It can stand in for the data" if above >= GOOD_RECOVERY
            else "It is a partial substitute" if above >= 0.5
            else "It cannot stand in for the data"
        )  # fmt: skip
        sentences.append(
            f"{opening}: networks trained on {images} {what} images{smaller} ({share:.1%} of {whole}) reach "
            f"{arms['distilled'][metric]['mean']:.3f} balanced accuracy where the full data reach "
            f"{arms['full'][metric]['mean']:.3f}. That is {plain:.0%} of the score, and {above:.0%} of what "
            "lies above guessing."
        )
    difference = f"{gain['mean']:+.3f} balanced accuracy, 95 % interval {low:+.3f} to {high:+.3f}"
    if low > 0:
        sentences.append(f"It is better than the same {equal} of random images: {difference}.")
    elif high < 0:
        sentences.append(f"It is worse than the same {equal} of random images: {difference}. Do not use it.")
    else:
        sentences.append(
            f"It was not shown to be better than the same {equal} of random images: {difference}. "
            "More images per class or more test images may decide it."
        )
    if alike is not None:
        low, high = alike[metric]["ci95"]
        said = (
            "Its images are better than" if low > 0
            else "Its images are worse than" if high < 0
            else "Most of this may come from how it is stored and labelled: it was not shown to be better than"
        )  # fmt: skip
        sentences.append(
            f"{said} random images stored and labelled in the same way: {alike[metric]['mean']:+.3f}, "
            f"95 % interval {low:+.3f} to {high:+.3f}."
        )
    weak = [
        (full - recall, name, recall)
        for name, recall, full in zip(
            result["class_names"], result["details"]["distilled"]["recall"], result["details"]["full"]["recall"],
            strict=True,
        )
        if recall is not None and full is not None and recall < full - 0.15
    ]  # fmt: skip
    if weak:
        listed = ", ".join(f"{name} ({recall:.0%})" for _, name, recall in sorted(weak, reverse=True)[:4])
        sentences.append(f"It loses most on: {listed} of the images recognised.")
    if coreset:
        sentences.append("It contains real patient images and falls under the same rules as the original.")
    else:
        sentences.append("Leakage was not measured. Without a privacy budget nothing is guaranteed.")
    return sentences
