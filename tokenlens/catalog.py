"""Named things, one per file, found in their folder: the file name is the public name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

SHARED = ("base", "page", "style")
"""Files of a catalogue's folder that belong to all of its things."""


def nearest(name: str, known: Iterable[str], n: int = 5) -> list[str]:
    """The known names that look most like ``name``, best first."""
    known = list(known)
    inside = [candidate for candidate in known if name and name in candidate]
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    return list(dict.fromkeys(close + inside))[:n]


class Catalog:
    """The things of one kind that live in one package, a file each.

    Args:
        package: import path of the folder, e.g. ``"tokenlens.metrics"``.
        kind: what one thing is called in messages, e.g. ``"metric"``.
        base: where a thing is a class, the name of the base class that the package itself defines; the file then
            holds exactly one subclass of it. Without it the thing is the module.

    Folders, files whose name starts with an underscore, and those of ``SHARED`` are not things. Listing names imports
    nothing.
    """

    def __init__(self, package: str, kind: str, base: str | None = None) -> None:
        self.package = package
        self.kind = kind
        self.base = base

    def names(self) -> list[str]:
        """All names, sorted, without importing any of the files."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            return []
        found = pkgutil.iter_modules(spec.submodule_search_locations)
        return sorted(
            module.name
            for module in found
            if not (module.ispkg or module.name.startswith("_") or module.name in SHARED)
        )

    def module(self, name: str) -> ModuleType:
        """Import the file of one name; LookupError with the nearest names if there is none."""
        names = self.names()
        if name not in names:
            close = nearest(name, names)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise LookupError(f"no {self.kind} is called {name!r}.{hint} Available: {', '.join(names)}.")
        return importlib.import_module(f"{self.package}.{name}")

    def get(self, name: str) -> Any:
        """The thing of one name: the module, or the one subclass of ``base`` that the module defines."""
        module = self.module(name)
        if self.base is None:
            return module
        base = getattr(importlib.import_module(f"{self.package}.base"), self.base)
        own = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        ]
        if len(own) != 1:
            raise LookupError(
                f"{module.__name__} must define exactly one {self.base}, it defines {[c.__name__ for c in own]}"
            )
        return own[0]

    def describe(self, name: str) -> str:
        """First line of the docstring of one thing's file."""
        return (self.module(name).__doc__ or "").strip().split("\n")[0]
