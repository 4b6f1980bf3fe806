"""Catalogues of named entries, one file each: the file name is the public name."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

SHARED = ("base", "page", "style")
"""Files that all entries of a catalogue share."""


def nearest(name: str, known: Iterable[str], n: int = 5) -> list[str]:
    """Return the known names most similar to ``name``, best first."""
    known = list(known)
    inside = [candidate for candidate in known if name and name in candidate]
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    return list(dict.fromkeys(close + inside))[:n]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with the known names most similar to ``name``, or nothing if none is similar."""
    close = nearest(name, known)
    return f" Did you mean {', '.join(close)}?" if close else ""


def check_known(name: str, known: Iterable[str], kind: str) -> None:
    """Raise LookupError with the nearest names, unless ``name`` is one of ``known``."""
    known = list(known)
    if name not in known:
        raise LookupError(f"no {kind} is called {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}.")


class Catalog:
    """The entries of one kind, each a file of one package.

    Folders, files whose name starts with an underscore, and those of ``SHARED`` are not entries. Listing names imports
    nothing.

    Args:
        package: import path of the folder, e.g. ``"tokenlens.metrics"``.
        kind: word for an entry in messages, e.g. ``"metric"``.
        base: for entries that are classes, the name of their base class in ``base.py``; each file holds exactly one
            subclass of it. By default an entry is the module.
    """

    def __init__(self, package: str, kind: str, base: str | None = None) -> None:
        self.package = package
        self.kind = kind
        self.base = base

    def names(self) -> list[str]:
        """Return all names, sorted, without importing any of the files."""
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
        """Import the file of one entry; raise LookupError with the nearest names if there is none."""
        check_known(name, self.names(), self.kind)
        return importlib.import_module(f"{self.package}.{name}")

    def get(self, name: str) -> Any:
        """Return one entry: the module, or the one subclass of ``base`` that it defines."""
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
        """Return the first line of the docstring of an entry's file, without importing it."""
        check_known(name, self.names(), self.kind)
        spec = importlib.util.find_spec(f"{self.package}.{name}")
        assert spec is not None
        assert spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        return (text or "").split("\n")[0]
