"""The card: README.md of a package, written for somebody who has never heard of us."""

from __future__ import annotations

from importlib import resources

from medistill.data.image import shape_in_words
from medistill.package.guarantee import guaranteed
from medistill.package.manifest import Manifest

ARMS = {
    "distilled": "these images",
    "random": "random real images, same {equal}",
    "random_matched": "random real images, same storage and soft labels",
    "full": "all original images",
    "full_balanced": "original images, each class seen equally often",
}
"""What tables call the arms of a comparison; "equal" is what random images have in common with the package."""


def card(manifest: Manifest) -> str:
    """The card's Markdown text, from the manifest's content alone."""
    import jinja2

    source = resources.files("medistill.package").joinpath("card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    task, image = manifest.made_task(), manifest.image
    smaller = image.stored_shape != image.shape
    equal = "bytes" if smaller else "number"
    evaluated, guarantee = manifest.evaluation, manifest.privacy.guarantee
    unit = "image" if guarantee is None else guarantee.unit
    return environment.from_string(source).render(
        m=manifest,
        guarantee=guarantee,
        guaranteed=guaranteed(manifest),
        counted=f"original {unit}s, {'' if task.exclusive else 'weighted, '}with noise"
        if guarantee
        else "original images",
        task=task,
        image=image,
        data=manifest.provenance.data,
        smaller=smaller,
        per_slot=manifest.provenance.configuration.factor ** len(image.shape),
        size=shape_in_words(image.shape),
        stored=shape_in_words(image.stored_shape),
        ones=", 1" * len(image.shape),
        arms={a: t.format(equal=equal) for a, t in ARMS.items() if evaluated and a in evaluated.arms},
        settings={
            **manifest.method.settings,
            **{f"optimiser {k}": v for k, v in (manifest.method.optimiser or {}).items()},
        },
    )
