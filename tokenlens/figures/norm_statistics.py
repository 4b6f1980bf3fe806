"""The mean and variance that each norm computes, per token group, and the ratio of CLS's σ to the patches'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures import COLOURS, MARKERS
from tokenlens.figures._panels import (
    INTERVALS,
    canvas,
    depth_axis,
    depth_line,
    handle,
    log_axis,
    norm_columns,
    styled,
    zero_line,
)
from tokenlens.figures._rows import in_order, norm_title, pair_title, place_of, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "What each norm measures, per token group"
ORDER = 30
CAPTION = (
    "The mean μ and the variance σ² over channels that each norm computes for a token and then removes, averaged per "
    "token group, and the log ratio of CLS's σ to the patches': above 0 the norm shrinks CLS more than patches. "
    "RMSNorm has the mean square in place of the variance and no mean."
)
METRICS = ("norm_statistics",)

PARTS = {
    "mean": "mean μ",
    "variance": "variance σ²",
    "mean_square": "mean square",
    "log_std_ratio": "log(σ CLS / σ patch)",
}


def frame(analysis: Analysis) -> pd.DataFrame:
    """Statistics per part, norm, block and group.

    Raises:
        NothingToDraw: if norm_statistics was not computed or does not apply.
    """
    rows = rows_of(analysis, "norm_statistics", parts=list(PARTS)).rename(columns={"site": "norm"})
    rows["place"] = place_of(analysis)
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    columns = ["model", "metric", "part", "norm", "place", "group", "block", "value", "sd", "n", "ci_low", "ci_high"]
    return rows[[*columns, "unit"]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row of panels for each statistic and a column for each norm.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms, widths = norm_columns(frame["norm"])
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, len(parts), len(norms), 22 + 36 * len(parts), sharex="col", sharey="row", width_ratios=widths)
    for row, part in enumerate(parts):
        for column, norm in enumerate(norms):
            panel = page.axes[row, column]
            inside = frame[(frame["part"] == part) & (frame["norm"] == norm)]
            for group, rows in inside.groupby("group", sort=False):
                depth_line(panel, rows, COLOURS[str(group)], MARKERS[str(group)])
            depth_axis(panel, frame.loc[frame["norm"] == norm, "block"], norm == "final_norm", part == parts[-1])
            panel.grid(axis="y")
            panel.tick_params(axis="y", which="both", left=column == 0)
            if part in ("mean", "log_std_ratio"):
                zero_line(panel)
            if row == 0:
                panel.set_title(norm_title(frame, norm))
        if part in ("variance", "mean_square"):
            log_axis(page.axes[row, 0])
        unit = frame.loc[frame["part"] == part, "unit"].iloc[0]
        page.axes[row, 0].set_ylabel(PARTS[part] if part == "log_std_ratio" else f"{PARTS[part]} [{unit}]")
    groups = in_order(frame["group"])
    page.level()
    page.legend([handle(pair_title(group), COLOURS[group], MARKERS[group]) for group in groups if "-" not in group])
    page.header(frame, INTERVALS)
    return page.figure
