"""How much attention and MLP change the residual stream, per token group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import INTERVALS, depth_line, depth_panels, handle, log_axis, zero_line
from tokenlens.figures._rows import GROUPS, in_order, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "How much each branch changes the residual"
ORDER = 80
CAPTION = (
    "Top: length of what a branch adds over the length of the residual it is added to. Bottom: their cosine; below 0 "
    "the branch takes away some of what is there."
)
METRICS = ("update_ratio",)

SITES = {"attn_out": "attention (over resid_pre)", "mlp_out": "MLP (over resid_mid)"}
PARTS = {"ratio": "‖update‖ / ‖residual‖", "cosine": "cos(update, residual)"}


def frame(
    analysis: Analysis, sites: str | Sequence[str] = tuple(SITES), parts: str | Sequence[str] = tuple(PARTS)
) -> pd.DataFrame:
    """Ratios and cosines per branch, block and group.

    Args:
        analysis: where the numbers come from.
        sites: only these of ``attn_out`` and ``mlp_out``.
        parts: only these of ``ratio`` and ``cosine``.

    Raises:
        NothingToDraw: if update_ratio was not computed, does not apply, or has no such site or part.
    """
    rows = rows_of(analysis, "update_ratio", parts=parts, sites=sites)
    columns = ["model", "metric", "part", "site", "group", "block", "value", "sd", "n", "ci_low", "ci_high", "unit"]
    return rows[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: ratio above cosine, a column for each branch.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    sites = [site for site in SITES if (frame["site"] == site).any()]
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, len(parts), len(sites), 24 + 42 * len(parts), sharex="col", sharey="row")
    for panel, part, _, inside in depth_panels(page, frame, ("part", parts), ("site", sites), SITES.__getitem__):
        for group, line in inside.groupby("group", sort=False):
            depth_line(panel, line, COLOURS[str(group)], MARKERS[str(group)])
        if part == "cosine":
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part == "ratio":
            log_axis(first)
        first.set_ylabel(PARTS[part])
    groups = in_order(frame["group"])
    page.level()
    page.legend([handle(GROUPS[group], COLOURS[group], MARKERS[group]) for group in groups])
    page.header(frame, INTERVALS)
    return page.figure
