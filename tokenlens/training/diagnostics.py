"""The cheap diagnostics of a fixed batch, taken again and again while a model is trained."""

# Shapes: N images of the fixed batch.

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from tokenlens.analysis.analyze import analyze
from tokenlens.images.decoding import UnreadableImageError

KEPT = {
    "norm_differentiation": ("norm1", "final_norm"),
    "cls_patch_cosine": ("norm1", "resid_post"),
    "token_norm": ("resid_post",),
}
"""The metrics, and the sites whose rows are kept."""


class Readable(Protocol):
    """Images that are read by their number."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, i: int) -> Image.Image:
        """One of them, RGB."""


def fixed_batch(images: Readable, count: int, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Images evenly spaced over the set, the same in every training on it, (N, 3, height, width).

    Raises:
        ValueError: if none of them can be read.
    """
    found = []
    for index in np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)):
        try:
            found.append(transform(images.read(int(index))))
        except UnreadableImageError:
            continue
    if not found:
        raise ValueError(f"none of the {count} images to diagnose can be read")
    return torch.stack(found)


def diagnose(model: nn.Module, pixels_N3HW: Tensor, step: int, amp: bool) -> list[dict[str, Any]]:
    """The rows that are kept of an analysis of the model after ``step`` steps.

    In a training of several processes all of them must ask; each gets all rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # intervals of a single image
        table = analyze(model, pixels_N3HW, metrics=list(KEPT), amp=amp).table
    kept = [table[(table["metric"] == metric) & table["site"].isin(sites)] for metric, sites in KEPT.items()]
    rows = pd.concat(kept).astype(object)
    return [{"step": step, **row} for row in rows.where(rows.notna(), None).to_dict("records")]
