"""What finds methods, tasks, readers and audit checks: one file each, ours or those of an installed package."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from medistill.errors import ConfigError

Kind = TypeVar("Kind", bound=type[Any])


class Registry(Generic[Kind]):
    """Classes by name: those of a package of ours and those of an entry point, imported when first asked for."""

    def __init__(self, what: str, package: str, group: str) -> None:
        """Know nothing yet.

        Args:
            what: what the classes are, for messages.
            package: dotted name of the package whose modules register ours.
            group: entry points of installed packages.
        """
        self.what, self.package, self.group = what, package, group
        self._classes: dict[str, Kind] = {}
        self._discovered = False

    def add(self, name: str, kind: Kind) -> Kind:
        """Make a class known, again too where a module is imported anew.

        Raises:
            ConfigError: another one has that name.
        """
        former = self._classes.get(name)
        if former is not None and (former.__module__, former.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ConfigError(f"{self.what} '{name}' exists already", where=kind.__module__)
        self._classes[name] = kind
        return kind

    def all(self) -> dict[str, Kind]:
        """Every class, sorted by name.

        Raises:
            ConfigError: an installed package's cannot be imported.
        """
        if not self._discovered:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for point in entry_points(group=self.group):
                try:
                    point.load()
                except Exception as problem:  # whatever another's module raises
                    raise ConfigError(
                        f"cannot be loaded ({type(problem).__name__}: {problem})",
                        where=f"the {self.what} '{point.name}' of an installed package ({point.value})",
                        remedy="mend or uninstall that package",
                    ) from problem
            self._discovered = True
        return dict(sorted(self._classes.items()))
