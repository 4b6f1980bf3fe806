"""One local crop in addition to the two global ones, and small heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPLITS = False
"""The centre moves at every part."""

MOVES = ("teacher.", "teacher_heads.")


def options(folder: Path) -> dict[str, Any]:
    return {
        "local_crops": 1,
        "local_size": 16,
        "prototypes": 16,
        "hidden": 24,
        "bottleneck": 8,
        "last_layer_held": 0.5,
        "momentum": 0.9,
    }
