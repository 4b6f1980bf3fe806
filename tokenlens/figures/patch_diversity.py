"""Diversity of the patches of an image over the blocks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import INTERVALS, depth_line, depth_panels
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, MARKERS

KIND = "analysis"
TITLE = "Diversity of the patches"
ORDER = 95
GROUP = "Similarity"
CAPTION = (
    "Share of the patches of an image that is not common to all of them, ‖X − X̄‖/‖X‖, in the residual stream: 0 where "
    "all patches are alike (oversmoothing), 1 where their mean is 0."
)
METRICS = ("patch_diversity",)


def frame(analysis: Analysis, site: str = "resid_post") -> pd.DataFrame:
    """Return the diversity per block at one site.

    Args:
        site: ``resid_pre``, ``norm1``, …; all token sites but ``final_norm``, which belongs to no block.

    Raises:
        NothingToDraw: if patch_diversity was not computed at this site.
    """
    rows = rows_of(analysis, "patch_diversity", sites=site)
    return rows[["model", "metric", "part", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw the diversity over the blocks."""
    page = canvas(ax, 1, 1, 66)
    for panel, _, _, rows in depth_panels(page, frame, None, ("site", list(frame["site"].unique())), str):
        depth_line(panel, rows, COLOURS["patch"], MARKERS["patch"])
        panel.set_ylim(0, 1)
        panel.set_ylabel("‖X − X̄‖ / ‖X‖")
    page.header(frame, INTERVALS)
    return page.figure
