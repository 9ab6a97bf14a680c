"""``audit``: what a package gives away, measured by every check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medistill.aliases import Json
from medistill.audits.audit import Audit, NotMeasuredError, Population, audit_key, audits, populations
from medistill.config import build
from medistill.data.preprocess import PreparedDataset, prepare
from medistill.errors import ConfigError, nearest
from medistill.package.finding import Finding
from medistill.package.package import Package, read_package, write_package
from medistill.package.source import data_config, is_source, load_for
from medistill.progress import duration, say
from medistill.runtime import prepare_torch

WITHOUT_DATA = "the training data were not given (--train), so this was not measured"


def audit(
    package: str | Path,
    *,
    train: str | Path | None = None,
    checks: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    attach: bool = False,
    progress: bool = False,
) -> Json:
    """Measure what a package gives away, and whether it can be trusted.

    Args:
        package: folder or zip.
        train: the data set that it was made from; without it only those checks run that look at the package alone, as
            whoever received it can.
        checks: names; all, if None.
        settings: options of checks by name, ``{"membership": {"shadows": 16}}``.
        attach: write the findings into the package's manifest and card.
        progress: show progress on standard error.

    Returns:
        ``package``, ``package_id``, ``audits`` (a finding of each check: name, title, value, interval, verdict,
        explanation, reference, real_images, details) and ``not_measured`` (reasons by check).

    Raises:
        PackageError, DataError, ConfigError: one line each.
    """
    prepare_torch()
    chosen = chosen_checks(checks, settings or {}, progress)
    read = read_package(package)
    prepared = None if train is None else _source(read, train)
    if attach and prepared is None:
        raise ConfigError("needs the training data", where="--attach", remedy="give them as --train")
    findings, not_measured = findings_of(chosen, read, prepared, progress)
    if attach:
        looked = [check.name for check in chosen if check.needs_training_data]
        read = write_package(Path(package).expanduser(), read.with_findings(findings, looked))
    return {
        "package": str(package),
        "package_id": read.identity,
        "audits": [finding.model_dump(mode="json") for finding in findings],
        "not_measured": not_measured,
    }


def chosen_checks(
    names: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]], progress: bool
) -> list[Audit]:
    """Checks with their options.

    Raises:
        ConfigError: an unknown check or option, or an option out of range.
    """
    known = audits()
    for name in (*(names or ()), *settings):
        if name not in known:
            raise ConfigError(f"unknown check '{name}'", allowed=", ".join(known), remedy=nearest(name, known))
    return [
        build(known[name], {**settings.get(name, {}), "progress": progress}, name)
        for name in known
        if names is None or name in names
    ]


def _source(package: Package, train: str | Path) -> PreparedDataset:
    dataset, _ = load_for(package, train)
    if not is_source(package, dataset):
        raise ConfigError(
            "are not the data that the package was made from",
            where=train,
            remedy="give those; without --train what can be told from the package alone is checked",
        )
    return prepare(dataset, data_config(package))


def findings_of(
    chosen: Sequence[Audit], package: Package, prepared: PreparedDataset | None, progress: bool
) -> tuple[list[Finding], dict[str, str]]:
    """What each check finds, and why some could not be made."""
    nobody = Population([], package.targets[:0])
    members, non_members = (nobody, nobody) if prepared is None else populations(prepared)
    if progress:
        _tell_time(chosen, package, members)
    findings: list[Finding] = []
    not_measured: dict[str, str] = {}
    for check in chosen:
        if check.needs_training_data and prepared is None:
            not_measured[check.name] = WITHOUT_DATA
            continue
        try:
            found = check.run(package, members, non_members, audit_key(package.manifest.provenance.seed, check))
        except (NotMeasuredError, ConfigError) as problem:  # a method that is not installed here, for instance
            not_measured[check.name] = str(problem)
            continue
        findings.append(found)
        say(f"{found.title}: {found.verdict}", progress)
    return findings, not_measured


def _tell_time(chosen: Sequence[Audit], package: Package, members: Population) -> None:
    """How long it takes, where nothing is kept from before."""
    seconds = 0.0
    for check in chosen:
        if len(members) or not check.needs_training_data:
            with suppress(ConfigError):  # told as the check is made
                seconds += check.seconds(package, members, audit_key(package.manifest.provenance.seed, check))
    say(f"auditing takes about {duration(seconds)}, less what is kept from before", seconds > 0)
