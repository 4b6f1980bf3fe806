"""Distance between the mean CLS token and the mean patch, in units of their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import JACKKNIFE, draw_before_after
from tokenlens.figures._rows import before_after
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled

KIND = "analysis"
TITLE = "Distance between CLS and patches relative to their spread"
ORDER = 110
GROUP = "Similarity"
CAPTION = (
    "Distance between the mean CLS token and the mean patch token over all images, divided by the spread of both "
    "groups. At 0 the means coincide; above 1 the groups are further apart than they are wide."
)
METRICS = ("centroid_separation",)


def frame(analysis: Analysis, norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return the separation before and after each norm.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``; by default all.

    Raises:
        NothingToDraw: if centroid_separation was not computed or does not apply.
    """
    found = before_after(analysis, ["centroid_separation"], norms)
    found = found[found["value"].notna()]
    if found.empty:
        raise NothingToDraw(f"centroid_separation of {analysis.model} is not defined on these images")
    return found.reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None, log: bool = False) -> Figure:
    """Draw one panel per norm.

    Args:
        log: whether the axis is logarithmic.
    """
    figure = draw_before_after(frame, ax, "distance of means / spread", zero=not log, log=log, note=JACKKNIFE)
    if not log:
        figure.axes[0].set_ylim(bottom=0)
    return figure
