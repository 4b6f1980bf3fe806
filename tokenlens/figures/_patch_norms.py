"""Norms of single patches, and which of them the rules of ``token_norm`` mark."""

# Shapes: N images, L blocks, P patches.

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._photographs import maps_of
from tokenlens.figures.base import model_title
from tokenlens.figures.style import COLOURS, INK, MARKED_PATCH
from tokenlens.images.files import base_name
from tokenlens.metrics.token_norm import HIGH_NORM_RATIO, high_norm_patches, outlier_patches

MARKED = {
    "high_norm": (f"high-norm: above {HIGH_NORM_RATIO:g} × the image's median", MARKED_PATCH, "o"),
    "outlier": ("outlier: above median + 4·1.4826·MAD", INK, "|"),
}
"""Column of the frame, legend, colour and marker of both rules."""

PATCHES = COLOURS["patch"]


def patch_norms(analysis: Analysis) -> pd.DataFrame:
    """Return a row per block, image and patch: its norm before and after norm1, and which rules mark it.

    The rules see the norms before norm1, in the residual stream, of one image and block.

    Raises:
        NothingToDraw: if the analysis kept no maps of its first images.
    """
    kept = maps_of(analysis, "the norm of each patch")
    before_LNP, after_LNP = (
        kept.norms[:, side].astype(np.float32).transpose(1, 0, 2, 3).reshape(len(kept.blocks), len(kept.names), -1)
        for side in (0, 1)
    )
    blocks, images, patches = before_LNP.shape
    columns = kept.norms.shape[-1]
    places = np.tile(np.arange(patches), blocks * images)
    norms = torch.from_numpy(before_LNP)
    values: dict[str, Any] = {
        "model": model_title(analysis),
        "block": np.repeat(kept.blocks, images * patches),
        "image": np.tile(np.repeat(np.array([base_name(name) for name in kept.names]), patches), blocks),
        "row": places // columns,
        "column": places % columns,
        "before": _digits(before_LNP),
        "after": _digits(after_LNP),
        "high_norm": high_norm_patches(norms).numpy().ravel(),
        "outlier": outlier_patches(norms).numpy().ravel(),
        "n": images,
    }
    return pd.DataFrame(values)


def _digits(values: Any) -> Any:
    """Round to three significant digits: the maps are kept in half precision, which has 3.3."""
    values = np.asarray(values, dtype=np.float64).ravel()
    unit = 10.0 ** (np.floor(np.log10(np.where(values > 0, values, 1.0))) - 2)
    return np.round(np.round(values / unit) * unit, 9)
