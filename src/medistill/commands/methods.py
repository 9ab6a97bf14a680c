"""``methods``: what is there, what it costs, whether it keeps real images, whom to cite."""

from __future__ import annotations

from medistill.aliases import Json
from medistill.distil.method import methods as registry
from medistill.distil.presets import presets
from medistill.tasks.task import tasks


def methods() -> list[Json]:
    """Every registered method with its hyperparameters, defaults and citation."""
    entries = []
    for name, method in registry().items():
        info = method.info
        entries.append(
            {
                "name": name,
                "title": info.title,
                "kind": info.kind,
                "cost": info.cost,
                "contains_real_images": info.contains_real_images,
                "starts_from_real_images": method().starts_from_real_images,
                "learns_labels": info.learns_labels,
                "queries": list(info.queries),
                "tasks": [kind for kind in tasks() if info.tasks is None or kind in info.tasks],
                "dimensions": list(info.dimensions),
                "version": info.version,
                "presets": presets().get(name, []),
                "bibtex": info.bibtex,
                "settings": {
                    key: {"default": field.default, "description": field.description}
                    for key, field in method.model_fields.items()
                },
            }
        )
    return entries
