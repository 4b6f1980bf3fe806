"""Mixup, CutMix and a moving average of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPLITS = True
MOVES = ("average.",)


def options(folder: Path) -> dict[str, Any]:
    return {"ema_decay": 0.9}
