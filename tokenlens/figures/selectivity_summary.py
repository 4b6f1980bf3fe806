"""How selective the channels are at each norm's input and output, over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import JACKKNIFE, depth_line, depth_panels, handle, norm_columns, zero_line
from tokenlens.figures._rows import listed, norm_title, place_of, rows_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

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


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, parts: str | Sequence[str] = tuple(PARTS)
) -> pd.DataFrame:
    """Summaries per part, norm, side of the norm and block.

    Args:
        analysis: where the numbers come from.
        norms: only these of ``norm1``, ``norm2`` and ``final_norm``.
        parts: only these of ``mean``, ``share``, ``top_overlap`` and ``gamma_correlation``.

    Raises:
        NothingToDraw: if dimension_selectivity was not computed, does not apply, or has no such norm or part.
    """
    rows = rows_of(analysis, "dimension_selectivity", sites=norms).rename(columns={"site": "norm"})
    rows["place"] = place_of(analysis)
    sides = rows["part"].str.extract(r"^(input|output)_(.+)$")
    rows["side"], rows["part"] = sides[0], sides[1]
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    rows = rows[rows["part"].isin(listed(parts)) & rows["value"].notna()]
    if rows.empty:
        raise NothingToDraw(f"dimension_selectivity has no part {', '.join(listed(parts))}. Parts: {', '.join(PARTS)}.")
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
    rows, columns = ("part", parts), ("norm", norms)
    for panel, part, _, inside in depth_panels(page, frame, rows, columns, norm_title(frame), widths):
        for side, line in inside.groupby("side", sort=True):
            depth_line(panel, line, INK, "o", hollow=side == "input")
        if part == "gamma_correlation":
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part != "gamma_correlation":
            first.set_ylim(bottom=0)
        first.set_ylabel(PARTS[part])
    page.level()
    page.legend([handle("norm's input", INK, "o", hollow=True), handle("norm's output", INK, "o")])
    page.header(frame, JACKKNIFE)
    return page.figure
