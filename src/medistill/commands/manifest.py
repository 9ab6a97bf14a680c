"""What the manifest of a package says of how it was made."""

from __future__ import annotations

import torch

from medistill import __version__
from medistill.commands.guarantee import guarantee_section
from medistill.config import DistilConfig
from medistill.data.preprocess import PreparedDataset
from medistill.distil.configuration import optimiser_of
from medistill.distil.method import Method, State
from medistill.distil.private_images import PrivateRealImages
from medistill.distil.problem import DistillationProblem
from medistill.package.image_section import image_section
from medistill.package.manifest import (
    DataSection,
    Manifest,
    MethodSection,
    PrivacySection,
    ProvenanceSection,
    TaskSection,
)


def manifest_of(
    method: Method, problem: DistillationProblem, config: DistilConfig, prepared: PreparedDataset, state: State
) -> Manifest:
    """The manifest of a package before it is audited, evaluated and written."""
    info, steps, guarantee = method.info, method.steps(problem), None
    if config.privacy is not None and isinstance(problem.real, PrivateRealImages):
        guarantee = guarantee_section(config.privacy, problem.real.mechanism, state)
    settings = {k: v for k, v in method.configuration().items() if k not in ("name", "version")}
    optimiser = optimiser_of(method, config, problem).as_json() if steps else None
    provenance = {
        "data": data_section(prepared, state.buffers["counts"] if guarantee else None),
        "configuration": config.model_dump(mode="json"),
        "seed": config.seed,
        "medistill": __version__,
    }
    return Manifest(
        task=TaskSection(kind=prepared.task.kind, class_names=list(prepared.class_names)),
        image=image_section(prepared.preprocessing, config.factor),
        method=MethodSection(
            name=info.name, title=info.title, kind=info.kind, version=info.version, bibtex=info.bibtex,
            settings=settings, optimiser=optimiser, steps=steps,
        ),
        start=method.start_name,
        privacy=PrivacySection(
            contains_real_images=info.contains_real_images,
            starts_from_real_images=method.starts_from_real_images,
            guarantee=guarantee,
            queries=["total"] if guarantee else list(method.queries),
        ),
        provenance=ProvenanceSection.model_validate(provenance),
    )  # fmt: skip


BASIC_PROFILE = "113100 Basic Application Confidentiality Profile"
"""What was done to headers, in the words of DICOM PS3.16 CID 7050: none is kept. Pixels are not cleaned (113101)."""


def data_section(prepared: PreparedDataset, noisy: torch.Tensor | None = None) -> DataSection:
    """The original data as the manifest names them.

    Args:
        prepared: the data; without images, where numbers are given.
        noisy: number of images, or of patients, in each stratum, where the true ones are private.
    """
    description = prepared.dataset.description
    private = noisy is not None
    counts = prepared.real_per_stratum if noisy is None else [round(float(n)) for n in noisy]
    return DataSection(
        name=description.name,
        fingerprint=None if private else prepared.dataset.fingerprint["sha256"],
        training_images=sum(counts) if private else len(prepared.train),
        per_stratum=counts,
        licence=description.licence,
        source=description.source,
        notes=[] if private else list(description.notes),
        decoders=dict(description.decoders),
        deidentification=[BASIC_PROFILE] if description.from_dicom else [],
    )
