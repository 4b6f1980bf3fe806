"""How far the clouds of CLS and patch tokens lie apart, in units of their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import JACKKNIFE, draw_before_after
from tokenlens.figures._rows import before_after
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "Distance of the CLS cloud from the patch cloud"
ORDER = 110
CAPTION = (
    "Distance of the mean CLS token from the mean patch token over the whole set of images, in units of the spread "
    "of both clouds: 0 is on top of each other; above 1 the clouds lie further apart than they are wide."
)
METRICS = ("centroid_separation",)


def frame(analysis: Analysis, norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """The separation before and after each norm, or only these of ``norm1``, ``norm2`` and ``final_norm``.

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
    """Draw it: a panel for each norm.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
        log: a logarithmic axis.
    """
    figure = draw_before_after(frame, ax, "distance of means / spread", zero=not log, log=log, note=JACKKNIFE)
    if not log:
        figure.axes[0].set_ylim(bottom=0)
    return figure
