"""Inexpensive diagnostics of a fixed batch, repeated during training."""

# Shapes: N images of the fixed batch.

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from tokenlens.analysis.analyze import analyze
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.training.batches import TrainingImages

DIAGNOSTIC_SITES = {
    "norm_differentiation": ("norm1", "final_norm"),
    "cls_patch_cosine": ("norm1", "resid_post"),
    "token_norm": ("resid_post",),
}
"""The metrics that are computed, each with the sites whose rows are kept."""


def choose_fixed_batch(images: TrainingImages, count: int, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Return images evenly spaced over the set, the same in every training on it, (N, 3, height, width).

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
        raise ValueError(f"none of the {count} images of the diagnostics can be read")
    return torch.stack(found)


def diagnose(model: nn.Module, pixels_N3HW: Tensor, step: int, amp: bool) -> list[dict[str, Any]]:
    """Return the rows of diagnostics.csv for a model after ``step`` steps.

    With several processes all of them must call it, and each gets all rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # intervals of a single image
        table = analyze(model, pixels_N3HW, metrics=list(DIAGNOSTIC_SITES), amp=amp).table
    kept = [
        table[(table["metric"] == metric) & table["site"].isin(sites)] for metric, sites in DIAGNOSTIC_SITES.items()
    ]
    rows = pd.concat(kept).astype(object)
    return [{"step": step, **row} for row in rows.where(rows.notna(), None).to_dict("records")]
