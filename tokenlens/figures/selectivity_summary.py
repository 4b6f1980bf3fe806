"""Summaries of channel selectivity at each norm's input and output, over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import JACKKNIFE, depth_line, legend_handle, norm_panels, zero_line
from tokenlens.figures._rows import as_list, rows_of_norms
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled
from tokenlens.figures.style import INK

KIND = "analysis"
TITLE = "Channel selectivity over the blocks"
ORDER = 50
GROUP = "Norms"
CAPTION = (
    "A solid line above the dashed one: the norm makes channels more specific to CLS or to patches. Summaries over "
    "channels at each norm's input (dashed) and output (solid): mean |s|; share of channels with |s| > "
    "0.5; overlap between the largest 5 % of channels of CLS and of patches; rank correlation of the norm's |γ| with "
    "|s|, which is above 0 if the norm amplifies selective channels. If CLS is the same for all images, chance alone "
    "makes about 23 % of the channels selective."
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
    """Return the summaries per part, norm, side of the norm and block.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.
        parts: any of ``mean``, ``share``, ``top_overlap`` and ``gamma_correlation``.

    Raises:
        NothingToDraw: if dimension_selectivity was not computed, does not apply, or has no such norm or part.
    """
    rows = rows_of_norms(analysis, "dimension_selectivity", norms=norms)
    sides = rows["part"].str.extract(r"^(input|output)_(.+)$")
    rows["side"], rows["part"] = sides[0], sides[1]
    rows = rows[rows["part"].isin(as_list(parts)) & rows["value"].notna()]
    if rows.empty:
        raise NothingToDraw(
            f"dimension_selectivity has no part {', '.join(as_list(parts))}. Parts: {', '.join(PARTS)}."
        )
    keys = ["model", "metric", "part", "norm", "norm_position", "side", "block"]
    return rows[[*keys, "value", "n", "ci_low", "ci_high", "unit"]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row of panels per summary and a column per norm."""
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page, panels = norm_panels(frame, ax, ("part", parts), (22, 30))
    for panel, part, _, inside in panels:
        for side, line in inside.groupby("side", sort=True):
            depth_line(panel, line, INK, "o", hollow=side == "input")
        if part == "gamma_correlation":
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part != "gamma_correlation":
            first.set_ylim(bottom=0)
        first.set_ylabel(PARTS[part])
    page.level()
    page.legend([legend_handle("norm's input", INK, "o", hollow=True), legend_handle("norm's output", INK, "o")])
    page.header(frame, JACKKNIFE if frame["ci_low"].notna().any() else "")
    return page.figure
