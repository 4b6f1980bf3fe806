"""Import the packages of the optional dependency group ``data``."""

from __future__ import annotations

import importlib
from typing import Any


def import_data_package(package: str, form: str) -> Any:
    """Import a package that sources of the form ``form`` need; ValueError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{form} needs the package {package}: pip install 'tokenlens-vit[data]'") from error
