"""``check``: list every problem of a data set before hours are spent on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medistill.aliases import Json
from medistill.commands.guarantee import offer, outlook
from medistill.config import DataConfig, PrivacyConfig
from medistill.data.checks import check as find_issues
from medistill.data.load import load
from medistill.data.overview import overview
from medistill.data.shortcuts import shortcut_issues, shortcuts
from medistill.files import require_apart, require_ours, require_writable, write_atomically


def check(
    data: str | Path,
    *,
    ipc: int | None = None,
    config: DataConfig | None = None,
    privacy: PrivacyConfig | None = None,
    html: str | Path | None = None,
) -> Json:
    """Check a data set.

    Args:
        data: path, folder, MedMNIST name or phantom.
        ipc: images per class that will be asked for, if known.
        config: how to read the data.
        privacy: a guarantee that will be asked for, if any.
        html: also write a page with tables, and pictures of real images: examples, outliers, copies, suspected text.

    Returns:
        ``name``, ``task``, ``classes`` (names of classes, grades or findings), ``strata``, ``fingerprint`` (SHA-256,
        counts, sizes), ``overview`` (see :func:`medistill.data.overview.overview`), ``shortcuts`` (see
        :func:`medistill.data.shortcuts.shortcuts`), ``notes``, ``problems`` (each with ``level``, ``kind``,
        ``found``, ``remedy``, ``rows`` and, where there are files, ``files``) and ``usable``; ``html``, the page,
        where asked for; ``privacy`` (what the noise of a guarantee does to these data, see
        :func:`medistill.commands.guarantee.outlook`) where one was asked for, else ``offer`` (the least ε whose noise
        they bear, see :func:`medistill.commands.guarantee.offer`).

    Raises:
        DataError: the source cannot be read at all.
        OutputError: the page cannot be written there.
    """
    if html is not None:
        from medistill.reporting.html import PAGE_MARK

        require_apart(Path(html), "--html", data)
        require_ours(Path(html), "--html", PAGE_MARK)
        require_writable(Path(html), "--html")
    if privacy is not None:  # split as private data are
        config = (config or DataConfig()).model_copy(update={"split": "independent"})
    dataset = load(data, config)
    reading = config or DataConfig()
    told = {"offer": offer(dataset, reading)} if privacy is None else {"privacy": outlook(dataset, privacy, reading)}
    issues = find_issues(dataset, ipc)
    description, task = dataset.description, dataset.task
    usable = not any(issue.level == "blocking" for issue in issues)
    ways = shortcuts(dataset) if usable else []
    issues += shortcut_issues(dataset, ways)
    found: Json = {
        "name": description.name,
        "task": task.kind,
        "classes": list(description.class_names),
        "strata": list(task.strata),
        "licence": description.licence,
        "source": description.source,
        "flips": description.flips,
        "fingerprint": dataset.fingerprint,
        "overview": overview(dataset),
        "shortcuts": [{**asdict(one), "strong": one.strong} for one in ways],
        "notes": list(description.notes),
        "problems": [_with_files(issue.as_json(), dataset) for issue in issues],
        "usable": usable,
        **told,
    }
    if html is not None:
        from medistill.reporting.check_page import check_page

        write_atomically(Path(html), check_page(dataset, found))
        found["html"] = str(Path(html).resolve())
    return found


def _with_files(problem: Json, dataset: Any) -> Json:
    """The problem with its images' files, where there are any."""
    files = [dataset.splits[split].named(row) for split, row in problem["rows"]]
    return {**problem, "files": files} if any(files) else problem
