"""What every audit check must do."""

from __future__ import annotations

from typing import Any, ClassVar

from medistill.audits.audit import NotMeasuredError, audits, populations
from medistill.data.phantom import make_phantom
from medistill.data.phantom_spec import Phantom
from medistill.data.preprocess import PreparedDataset, prepare
from medistill.distil import loop
from medistill.distil.method import State, make_method
from medistill.distil.problem import DistillationProblem, make_problem
from medistill.keys import Key
from medistill.package.finding import Finding
from medistill.package.image_section import image_section
from medistill.package.manifest import Manifest
from medistill.package.package import Package


class AuditConformance:
    """Tests that follow from the contract of an audit check alone."""

    audit: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    """Of the check, so that it takes seconds."""

    def run(self, seed: int = 0) -> Finding | str:
        """Run the check on a small package of random images of a phantom; why, where it has nothing to go by."""
        prepared = prepare(make_phantom(Phantom(classes=3, images=36, size=16)))
        problem = make_problem(prepared, 6, None)
        state = loop.start(make_method({"name": "random"}), problem, Key(0))
        package = small_package(prepared, problem, state)
        try:
            return audits()[self.audit](**self.options).run(package, *populations(prepared), Key(seed))
        except NotMeasuredError as reason:
            return str(reason)

    def test_registered_under_its_name(self) -> None:
        check = audits()[self.audit]
        assert check.name == self.audit and check.title

    def test_a_finding_says_what_it_is(self) -> None:
        finding = self.run()
        if isinstance(finding, str):
            assert finding
        else:
            assert finding.name == self.audit and finding.title and finding.explanation

    def test_a_finding_is_plain_data(self) -> None:
        finding = self.run()
        assert isinstance(finding, str) or Finding.model_validate_json(finding.model_dump_json()) == finding

    def test_same_key_same_finding(self) -> None:
        assert self.run() == self.run()


def small_package(prepared: PreparedDataset, problem: DistillationProblem, state: State) -> Package:
    """A package of such images as it is before it is written, with a manifest that says as little as can be."""
    task = prepared.task
    labels = {"teachers": 1, "balance": True, "calibrate": True, "temperature": 1.0, "recipe": {}}
    configuration = {"data": {"split_seed": 0}, "factor": 1, "labels": labels}
    data = {
        "name": "phantom", "fingerprint": prepared.dataset.fingerprint["sha256"], "notes": [],
        "training_images": len(prepared.train), "per_stratum": prepared.real_per_stratum,
        "licence": "CC0-1.0", "source": "generated",
    }  # fmt: skip
    manifest = Manifest.model_validate(
        {
            "task": {"kind": task.kind, "class_names": list(task.class_names)},
            "image": image_section(prepared.preprocessing, 1).model_dump(),
            "method": {"name": "random", "title": "Test", "kind": "coreset", "version": 1, "bibtex": ""},
            "start": "real",
            "privacy": {"contains_real_images": True, "starts_from_real_images": True},
            "provenance": {"data": data, "configuration": configuration, "seed": 0, "medistill": "test"},
        }
    )
    strata = problem.stratum_of.numpy()
    return Package(problem.quantise(state.images).numpy(), state.targets.numpy(), strata, manifest)
