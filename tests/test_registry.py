"""What finds methods, tasks, readers and audit checks of installed packages."""

from importlib.metadata import EntryPoint

import pytest

from medistill import registry
from medistill.errors import ConfigError
from medistill.registry import Registry


def test_an_entry_point_that_cannot_be_loaded_is_one_line(monkeypatch):
    broken = EntryPoint("triage", "no_such_module:Triage", "medistill.tasks")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    tasks = Registry("task", "medistill.tasks", "medistill.tasks")
    with pytest.raises(
        ConfigError, match=r"task 'triage' of an installed package \(no_such_module:Triage\).*uninstall"
    ):
        tasks.all()


def test_one_name_stands_for_one_class():
    known = Registry("task", "medistill.tasks", "none")
    known.add("a", int)
    assert known.add("a", int) is int
    with pytest.raises(ConfigError, match="task 'a' exists already"):
        known.add("a", str)
