"""Size and direction of the updates that attention and MLP add to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import INTERVALS, depth_panels, group_handles, group_lines, log_axis, zero_line
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.page import canvas, styled

KIND = "analysis"
TITLE = "Updates by attention and MLP"
ORDER = 80
GROUP = "Length"
CAPTION = (
    "Top: norm of a branch's output divided by the norm of the residual stream that it is added to. Bottom: their "
    "cosine; below 0 the branch removes part of the residual."
)
METRICS = ("update_ratio",)

SITES = {"attn_out": "attention (over resid_pre)", "mlp_out": "MLP (over resid_mid)"}
PARTS = {"ratio": "‖update‖ / ‖residual‖", "cosine": "cos(update, residual)"}


def frame(
    analysis: Analysis, sites: str | Sequence[str] = tuple(SITES), parts: str | Sequence[str] = tuple(PARTS)
) -> pd.DataFrame:
    """Return ratios and cosines per branch, block and group.

    Args:
        sites: one or both of ``attn_out`` and ``mlp_out``.
        parts: one or both of ``ratio`` and ``cosine``.

    Raises:
        NothingToDraw: if update_ratio was not computed, does not apply, or has no such site or part.
    """
    rows = rows_of(analysis, "update_ratio", parts=parts, sites=sites)
    return rows[["model", "metric", "part", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw ratio above cosine, with a column of panels per branch."""
    sites = [site for site in SITES if (frame["site"] == site).any()]
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, len(parts), len(sites), 24 + 42 * len(parts), sharex="col", sharey="row")
    for panel, part, _, inside in depth_panels(page, frame, ("part", parts), ("site", sites), SITES.__getitem__):
        group_lines(panel, inside)
        if part == "cosine":
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part == "ratio":
            log_axis(first)
        first.set_ylabel(PARTS[part])
    page.level()
    page.legend(group_handles(frame["group"]))
    page.header(frame, INTERVALS)
    return page.figure
