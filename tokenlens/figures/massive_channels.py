"""Size of the largest channels of the residual stream, by token group, over the blocks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import depth_panels, group_handles, group_lines, log_axis
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.page import canvas, styled

KIND = "analysis"
TITLE = "Massive channels"
ORDER = 98
GROUP = "Length"
CAPTION = (
    "Left: largest mean |x| of a channel over the median channel, per token group in the residual stream; up to about "
    "3 where none stands out. Right: share of the energy ‖x‖² in the three channels with the largest mean |x|. No "
    "intervals: the largest of many channels is biased upward with few images."
)
METRICS = ("massive_channels",)

PARTS = {"max_over_median": "largest / median channel", "top3_energy": "energy in the top three channels"}


def frame(analysis: Analysis, site: str = "resid_post") -> pd.DataFrame:
    """Return both numbers per block and group at one site of the residual stream.

    Args:
        site: ``resid_pre``, ``resid_mid`` or ``resid_post``.

    Raises:
        NothingToDraw: if massive_channels was not computed at this site; it is opt-in.
    """
    rows = rows_of(analysis, "massive_channels", parts=tuple(PARTS), sites=site)
    return rows[["model", "metric", "part", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel each for the ratio and the share of the energy."""
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, 1, len(parts), 66)
    for panel, _, part, inside in depth_panels(page, frame, None, ("part", parts), PARTS.__getitem__):
        group_lines(panel, inside)
        panel.tick_params(axis="y", which="both", left=True, labelleft=True)
        if part == "max_over_median":
            log_axis(panel)
        else:
            panel.set_ylim(0, 1)
    page.legend(group_handles(frame["group"]))
    page.header(frame, f"at {frame['site'].iloc[0]}")
    return page.figure
