"""Where is kept what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder ``kind`` in ``$TOKENLENS_CACHE`` or, without that, in ``tokenlens`` of the user's cache folder."""
    own = os.environ.get("TOKENLENS_CACHE")
    if own:
        return Path(own).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenlens" / kind
