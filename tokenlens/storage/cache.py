"""Locate the on-disk cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return the cache folder for one kind of data.

    It is ``kind`` in ``$TOKENLENS_CACHE`` if that is set, otherwise in ``tokenlens`` in the user's cache folder
    (``$XDG_CACHE_HOME`` or ``~/.cache``).
    """
    root = os.environ.get("TOKENLENS_CACHE")
    if root:
        return Path(root).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenlens" / kind
