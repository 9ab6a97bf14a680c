"""medistill distils a medical image data set into a few synthetic images to train on.

Every command of the command line is a function here::

    import medistill
    medistill.distill("phantom", method="dm", ipc=10, seed=0, out="package")
    result = medistill.evaluate("package", on="phantom")
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0.dev0"

_WHERE = {
    "check": "medistill.commands.check",
    "predict": "medistill.commands.predict",
    "distill": "medistill.commands.distill",
    "evaluate": "medistill.commands.evaluate",
    "audit": "medistill.commands.audit",
    "train": "medistill.commands.train",
    "verify": "medistill.commands.verify",
    "methods": "medistill.commands.methods",
    "report": "medistill.commands.report",
    "demo": "medistill.commands.demo",
    "study_run": "medistill.study.run",
    "study_report": "medistill.study.report",
    "use_device": "medistill.runtime",
    "load": "medistill.data.load",
    "prepare": "medistill.data.preprocess",
    "read_package": "medistill.package.package",
    "MedistillError": "medistill.errors",
}
__all__ = [*sorted(_WHERE), "__version__"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: importing medistill stays light, torch comes when it is needed.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'medistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
