"""Provenance of a result: versions, command and commit."""

from __future__ import annotations

import contextlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    names = {"tokenlens": "tokenlens-vit", **{name: name for name in ("torch", "timm", "numpy", "scipy", "pandas")}}
    found = {"python": platform.python_version()}
    for name, distribution in names.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(distribution)
    return found


def made_by(function: str) -> dict[str, Any]:
    """Return versions, command and commit, for the provenance of what a public function returns."""
    in_python = f"tokenlens.{function}(…) in Python"
    on_command_line = Path(sys.argv[0]).name in ("tokenlens", "__main__.py")
    command = shlex.join(["tokenlens", *sys.argv[1:]]) if on_command_line else in_python
    return {"versions": versions(), "command": command, "commit": _commit()}


def _commit() -> str:
    """Return the commit of tokenlens itself, empty for an installed wheel."""
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return ""
