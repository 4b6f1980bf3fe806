"""How much attention and MLP change the residual stream, per token group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures import COLOURS, MARKERS
from tokenlens.figures._panels import INTERVALS, canvas, depth_axis, depth_line, handle, log_axis, styled, zero_line
from tokenlens.figures._rows import GROUPS, in_order, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "How much each branch changes the residual"
ORDER = 80
CAPTION = (
    "Top: length of what a branch adds over the length of the residual it is added to. Bottom: their cosine; below 0 "
    "the branch takes away some of what is there."
)
METRICS = ("update_ratio",)

SITES = {"attn_out": "attention (over resid_pre)", "mlp_out": "MLP (over resid_mid)"}
PARTS = {"ratio": "‖update‖ / ‖residual‖", "cosine": "cos(update, residual)"}


def frame(analysis: Analysis) -> pd.DataFrame:
    """Ratios and cosines per branch, block and group.

    Raises:
        NothingToDraw: if update_ratio was not computed or does not apply.
    """
    rows = rows_of(analysis, "update_ratio", sites=list(SITES))
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
    for row, part in enumerate(parts):
        for column, site in enumerate(sites):
            panel = page.axes[row, column]
            inside = frame[(frame["part"] == part) & (frame["site"] == site)]
            for group, rows in inside.groupby("group", sort=False):
                depth_line(panel, rows, COLOURS[str(group)], MARKERS[str(group)])
            depth_axis(panel, inside["block"], label=part == parts[-1])
            panel.grid(axis="y")
            panel.tick_params(axis="y", which="both", left=column == 0)
            if part == "cosine":
                zero_line(panel)
            if row == 0:
                panel.set_title(SITES[site])
        if part == "ratio":
            log_axis(page.axes[row, 0])
        page.axes[row, 0].set_ylabel(PARTS[part])
    groups = in_order(frame["group"])
    page.level()
    page.legend([handle(GROUPS[group], COLOURS[group], MARKERS[group]) for group in groups])
    page.header(frame, INTERVALS)
    return page.figure
