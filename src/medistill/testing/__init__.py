"""What every method, task, reader, preprocessing step and audit check must do.

Subclass a conformance class to hold your own to its contract. For instance, in a test file of yours::

    from medistill.testing import MethodConformance

    class TestMine(MethodConformance):
        method = "mine"
        settings = {"iterations": 3}

pytest runs the inherited tests. Small settings keep them quick.
"""

from medistill.testing.audits import AuditConformance, small_package
from medistill.testing.methods import MethodConformance, small_problem
from medistill.testing.readers import ReaderConformance
from medistill.testing.steps import StepConformance, sample_images
from medistill.testing.tasks import TaskConformance

__all__ = [
    "AuditConformance",
    "MethodConformance",
    "ReaderConformance",
    "StepConformance",
    "TaskConformance",
    "sample_images",
    "small_package",
    "small_problem",
]
