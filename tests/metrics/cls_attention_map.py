"""The CLS row on the patch grid: mean and spread over images, and its largest weight over the mean."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("cls",)


def _rows(stored: Stored) -> np.ndarray:
    """(block, N, H, P)."""
    rows = [pattern[:, :, stored.positions("cls")[0]] for _, pattern in sorted(stored.patterns.items())]
    return np.stack(rows)[..., stored.positions("patch")]


def reference_cls_attention_map(stored: Stored) -> dict[Number, object]:
    rows = _rows(stored)
    peak = rows.max(-1) / rows.mean(-1)
    return {
        ("peak", block, "pattern", "cls-patch", head): peak[block, :, head]
        for block in range(rows.shape[0])
        for head in range(rows.shape[2])
    }


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows = _rows(stored)
    maps = rows.reshape(*rows.shape[:3], *stored.grid)
    dims = ("block", "head", "row", "column")
    return {"mean": (dims, maps.mean(1)), "sd": (dims, maps.std(1, ddof=1))}
