"""Cosine between images of their CLS tokens and of their mean patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import JACKKNIFE, draw_before_after
from tokenlens.figures._rows import before_after, missing
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled

KIND = "analysis"
TITLE = "Similarity of tokens between images"
ORDER = 100
GROUP = "Similarity"
CAPTION = (
    "Mean cosine between the CLS tokens of different images, and between their mean patches. Near 1 the token is "
    "almost the same for all images and carries little information about a single one."
)
METRICS = ("cls_cls_cosine", "patch_mean_cosine")


def frame(analysis: Analysis, norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return the cosines between images before and after each norm.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``; by default all.

    Raises:
        NothingToDraw: if neither metric was computed.
    """
    have = [metric for metric in METRICS if (analysis.table["metric"] == metric).any()]
    if not have:
        raise missing(analysis, METRICS[0])
    found = before_after(analysis, have, norms)
    found = found[found["value"].notna()]
    if found.empty:
        raise NothingToDraw(f"{' and '.join(have)} of {analysis.model} need more than one image")
    found["group"] = found["metric"].map({"cls_cls_cosine": "cls", "patch_mean_cosine": "patch"})
    return found.reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw one panel per norm."""
    return draw_before_after(frame, ax, "cosine between images", note=JACKKNIFE)
