"""How alike CLS is from image to image, and the mean patch: near 1, the token says little about this image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import JACKKNIFE, draw_before_after
from tokenlens.figures._rows import before_after, missing
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "How alike the images are to each other"
ORDER = 100
CAPTION = (
    "Mean cosine between different images of their CLS tokens, and of their mean patches. Near 1 the token is nearly "
    "the same for every image and says little about this one."
)
METRICS = ("cls_cls_cosine", "patch_mean_cosine")


def frame(analysis: Analysis, norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Cosines between images before and after each norm, or only these of ``norm1``, ``norm2`` and ``final_norm``.

    Raises:
        NothingToDraw: if neither metric was computed.
    """
    have = [metric for metric in METRICS if (analysis.table["metric"] == metric).any()]
    if not have:
        raise missing(analysis, METRICS[0])
    found = before_after(analysis, have, norms)
    found = found[found["value"].notna()]
    if found.empty:
        raise NothingToDraw(f"{' and '.join(have)} of {analysis.model} compare images, and there is one image only")
    found["group"] = found["metric"].map({"cls_cls_cosine": "cls", "patch_mean_cosine": "patch"})
    return found.reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a panel for each norm.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
    """
    return draw_before_after(frame, ax, "cosine between images", note=JACKKNIFE)
