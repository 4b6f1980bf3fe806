"""Linear predictability of a patch's place from its features, over the blocks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import depth_line, depth_panels, zero_line
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, MARKERS

KIND = "analysis"
TITLE = "Position in the patches"
ORDER = 97
GROUP = "Similarity"
CAPTION = (
    "R² of a ridge regression from a patch's features at the end of a block to its row and column, fitted on half of "
    "the images and tested on the other: 1 where the place can be read off, 0 for a constant guess."
)
METRICS = ("position_leak",)


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return R² per block.

    Raises:
        NothingToDraw: if position_leak was not computed, which is opt-in.
    """
    rows = rows_of(analysis, "position_leak")
    return rows[["model", "metric", "part", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw R² over the blocks."""
    page = canvas(ax, 1, 1, 66)
    for panel, _, _, rows in depth_panels(page, frame, None, ("site", list(frame["site"].unique())), str):
        depth_line(panel, rows, COLOURS["patch"], MARKERS["patch"])
        zero_line(panel)
        panel.set_ylim(top=1.02)
        panel.set_ylabel("R² of row and column")
    page.header(frame, "")
    return page.figure
