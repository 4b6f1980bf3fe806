"""The names of specialized models in timm's registry, as soon as timm is there; imports nothing heavy itself.

timm has no entry points for plug-ins: a package has to be imported. tokenlens must not import timm, and with it torch,
only because it is imported itself. So it registers at once where timm is loaded, and else right after timm has been.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_ENTRY_POINTS = "tokenlens.specialization._timm_names"


class _Finder(MetaPathFinder):
    """Answers for timm alone, with timm's own specification and a loader that registers afterwards."""

    def __init__(self) -> None:
        self.asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Some only ask whether timm is there, so asking must not use this finder up."""
        if fullname != "timm" or self.asking:
            return None
        self.asking = True
        try:
            spec = find_spec("timm")
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(self, spec.loader)
        return spec


class _Loader(Loader):
    """timm's own loader, and our entry points after it."""

    def __init__(self, finder: _Finder, loader: Loader) -> None:
        self.finder = finder
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As timm's own loader does it."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run timm as ever, then register."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self.finder)
        importlib.import_module(_ENTRY_POINTS)


def register() -> None:
    """Make ``timm.create_model("vit_small_patch16_224_specialized")`` work, now or once timm is imported."""
    if "timm" in sys.modules:
        importlib.import_module(_ENTRY_POINTS)
    else:
        sys.meta_path.insert(0, _Finder())
