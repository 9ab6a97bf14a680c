"""``check``: list every problem of a data set before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

from medistill.aliases import Json
from medistill.commands.guarantee import outlook
from medistill.config import DataConfig, PrivacyConfig
from medistill.data.checks import check as find_issues
from medistill.data.load import load


def check(
    data: str | Path,
    *,
    ipc: int | None = None,
    config: DataConfig | None = None,
    privacy: PrivacyConfig | None = None,
) -> Json:
    """Check a data set.

    Args:
        data: path, folder, MedMNIST name or phantom.
        ipc: images per class that will be asked for, if known.
        config: how to read the data.
        privacy: a guarantee that will be asked for, if any.

    Returns:
        ``privacy`` (which ε the data can bear, see :func:`medistill.commands.guarantee.outlook`) if it was asked for,
        ``name``, ``task``, ``classes`` (names of classes, grades or findings), ``strata``, ``fingerprint`` (SHA-256,
        counts, sizes), ``notes``, ``problems`` (each with ``level``, ``kind``, ``found``, ``remedy``) and ``usable``.

    Raises:
        DataError: the source cannot be read at all.
    """
    if privacy is not None:  # split as private data are
        config = (config or DataConfig()).model_copy(update={"split": "independent"})
    dataset = load(data, config)
    issues = find_issues(dataset, ipc)
    description, task = dataset.description, dataset.task
    return {
        "name": description.name,
        "task": task.kind,
        "classes": list(description.class_names),
        "strata": list(task.strata),
        "licence": description.licence,
        "source": description.source,
        "flips": description.flips,
        "fingerprint": dataset.fingerprint,
        "notes": list(description.notes),
        "problems": [issue.as_json() for issue in issues],
        "usable": not any(issue.level == "blocking" for issue in issues),
        **({} if privacy is None else {"privacy": outlook(dataset, privacy, config or DataConfig())}),
    }
