"""How selective the channels are at each norm's input and output, over the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures import INK
from tokenlens.figures._panels import JACKKNIFE, canvas, depth_axis, depth_line, handle, norm_columns, styled, zero_line
from tokenlens.figures._rows import norm_title, place_of, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "Selectivity of the channels over the blocks"
ORDER = 50
CAPTION = (
    "Summaries over channels, at each norm's input (dashed) and output (solid): mean |s|; the share of channels with "
    "|s| > 0.5; the overlap of CLS's and the patches' largest 5 % of channels; and the rank correlation of the "
    "norm's |γ| with |s| over channels: above 0, the norm weights selective channels up. Where CLS is the same for "
    "all images, chance alone makes about 23 % of channels selective."
)
METRICS = ("dimension_selectivity",)

PARTS = {
    "mean": "mean |s|",
    "share": "share of |s| > 0.5",
    "top_overlap": "overlap of top 5 %",
    "gamma_correlation": "ρ(|γ|, |s|)",
}


def frame(analysis: Analysis) -> pd.DataFrame:
    """Summaries per part, norm, side of the norm and block.

    Raises:
        NothingToDraw: if dimension_selectivity was not computed or does not apply.
    """
    rows = rows_of(analysis, "dimension_selectivity").rename(columns={"site": "norm"})
    rows["place"] = place_of(analysis)
    sides = rows["part"].str.extract(r"^(input|output)_(.+)$")
    rows["side"], rows["part"] = sides[0], sides[1]
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    rows = rows[rows["part"].isin(list(PARTS)) & rows["value"].notna()]
    columns = ["model", "metric", "part", "norm", "place", "side", "block", "value", "n", "ci_low", "ci_high", "unit"]
    return rows[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row of panels for each summary and a column for each norm.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms, widths = norm_columns(frame["norm"])
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, len(parts), len(norms), 22 + 30 * len(parts), sharex="col", sharey="row", width_ratios=widths)
    for row, part in enumerate(parts):
        for column, norm in enumerate(norms):
            panel = page.axes[row, column]
            inside = frame[(frame["part"] == part) & (frame["norm"] == norm)]
            for side, rows in inside.groupby("side", sort=True):
                depth_line(panel, rows, INK, "o", hollow=side == "input")
            depth_axis(panel, frame.loc[frame["norm"] == norm, "block"], norm == "final_norm", part == parts[-1])
            panel.grid(axis="y")
            panel.tick_params(axis="y", which="both", left=column == 0)
            if part == "gamma_correlation":
                zero_line(panel)
            if row == 0:
                panel.set_title(norm_title(frame, norm))
        if part != "gamma_correlation":
            page.axes[row, 0].set_ylim(bottom=0)
        page.axes[row, 0].set_ylabel(PARTS[part])
    page.level()
    page.legend([handle("norm's input", INK, "o", hollow=True), handle("norm's output", INK, "o")])
    page.header(frame, JACKKNIFE)
    return page.figure
