"""A guarantee of differential privacy in words: what it means for a person, and what it does not cover."""

from __future__ import annotations

from medistill.package.manifest import GuaranteeSection, Manifest
from medistill.privacy.accounting import most_correct, most_found

WHOSE = {"image": "a training image", "patient": "a patient, with all training images of that patient,"}


def guaranteed(manifest: Manifest) -> list[str]:
    """What a package guarantees, in sentences; none where it guarantees nothing."""
    guarantee = manifest.privacy.guarantee
    return [] if guarantee is None else guarantee_sentences(guarantee)


def guarantee_sentences(guarantee: GuaranteeSection) -> list[str]:
    """Sentences for card and report, the point first."""
    sigma, unit = guarantee.noise_multiplier, guarantee.unit
    right, found = most_correct(sigma), most_found(sigma, 0.01)
    sentences = [
        f"Differentially private with ε = {guarantee.epsilon:g} and δ = {guarantee.delta:g} for each {unit}: the "
        f"images and labels would have come out nearly as likely without {WHOSE[unit].rstrip(',')}. Whoever guesses "
        f"whether {WHOSE[unit]} took part, and knows everything else, is right in at most {right:.0%} of cases "
        f"(guessing alone: 50 %), and with 1 % of false alarms finds at most {found:.1%}.",
        f"Real images were asked once, for {guarantee.numbers} numbers: sums of embeddings, each {unit}'s part cut "
        f"to the length {guarantee.clip:.4g}, with Gaussian noise of {sigma:.4g} times the sensitivity "
        f"({guarantee.sensitivity:.4g} of that length). The noise came from the operating system's generator, "
        "follows from no seed and was not kept. That it was added is the sender's word; nothing here proves it.",
        f"Not covered: what is taken to be public ({'; '.join(guarantee.public)}); what is true of the group as a "
        "whole, which is what the images are for; and anything else that was released of the same data, as a second "
        "package, whose ε adds to this one's.",
    ]
    if guarantee.outside:
        sentences.append(
            f"Outside the guarantee: {', '.join(guarantee.outside)}, computed from real images without noise because "
            "somebody asked for it."
        )
    return sentences
