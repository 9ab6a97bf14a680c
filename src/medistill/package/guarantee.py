"""A guarantee of differential privacy in words: what it means for a person, and what it does not cover."""

from __future__ import annotations

import math

from medistill.package.manifest import GuaranteeSection, Manifest
from medistill.privacy.accounting import most_correct, most_found

HIDDEN = {"image": "a training image", "patient": "a patient"}
"""Whose presence a guarantee hides."""


def guaranteed(manifest: Manifest) -> list[str]:
    """What a package guarantees, in sentences; none where it guarantees nothing."""
    guarantee = manifest.privacy.guarantee
    return [] if guarantee is None else guarantee_sentences(guarantee)


def guarantee_sentences(guarantee: GuaranteeSection) -> list[str]:
    """Sentences for card and report, the point first."""
    sigma, unit = guarantee.noise_multiplier, guarantee.unit
    right, found = (
        f"{math.ceil(1000 * share) / 10:.1f} %" for share in (most_correct(sigma), most_found(sigma, 0.01))
    )
    without = {"image": "without any one image", "patient": "without all images of any one patient"}[unit]
    sentences = [
        f"Differentially private with ε = {guarantee.epsilon:g} and δ = {guarantee.delta:g} for each {unit}: the "
        f"images and labels would have come out nearly as likely {without}. Whoever guesses whether {HIDDEN[unit]} "
        "took part, where both are equally likely and all else is known, is right in at most "
        f"{right} of cases (guessing alone: 50 %), and with 1 % of false alarms finds at most {found}.",
        f"Real images were asked once, for {guarantee.numbers} numbers: {_asked(guarantee)} times the sensitivity "
        f"({guarantee.sensitivity:.4g} of that length). The noise came from the operating system's generator, "
        "follows from no seed and was not kept. That it was added is the sender's word; nothing here proves it.",
        f"Not covered: what is taken to be public ({'; '.join(guarantee.public)}); what is true of the group as a "
        "whole, which is what the images are for; and anything else that was released of the same data, as a second "
        "package, whose ε and δ add to these.",
    ]
    if unit == "image":
        sentences.append(
            "It hides one image, not a person: of somebody with several images it covers less, of k images about k "
            "times ε."
        )
    if guarantee.outside:
        sentences.append(
            f"Outside the guarantee, which is then one of the images and their labels alone: "
            f"{', '.join(guarantee.outside)}, computed from real images without noise because somebody asked for it."
        )
    return sentences


def _asked(guarantee: GuaranteeSection) -> str:
    """What was asked, where parts were cut, and how loud the noise was; of both queries where there are two."""
    sigma, share, cut = guarantee.noise_multiplier, guarantee.centre_share, f"each {guarantee.unit}'s part cut to the"
    if not share:
        return f"sums of embeddings, {cut} length {guarantee.clip:.4g}, with Gaussian noise of {sigma:.4g}"
    first, second = sigma / math.sqrt(share), sigma / math.sqrt(1 - share)
    return (
        f"the mean of all embeddings and then, measured from it, the classes' sums, {cut} lengths "
        f"{guarantee.centre_clip:.4g} and {guarantee.clip:.4g}, with Gaussian noise of {first:.4g} and {second:.4g} "
        f"(together as one of {sigma:.4g})"
    )
