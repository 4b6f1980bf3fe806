"""Number of channels that make the CLS–patch cosine, before and after a norm, over the blocks."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import depth_line, depth_panels, legend_handle
from tokenlens.figures._rows import NUMBERS, norm_position, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, MARKERS

KIND = "analysis"
TITLE = "Channels of the CLS–patch cosine"
ORDER = 55
GROUP = "Norms"
CAPTION = (
    "Each channel contributes a product to the CLS–patch cosine. Left: effective number of these channels, exp of the "
    "entropy of their sizes; 1 where one channel makes the cosine. Right: share of the largest. Dashed: input of the "
    "norm, solid: its output. No intervals: rare images with very many channels decide the means."
)
METRICS = ("cosine_channels",)

PARTS = {"effective_channels": "effective channels", "top1_share": "share of the largest"}
INPUTS = {"norm1": "resid_pre", "norm2": "resid_mid"}


def frame(analysis: Analysis, norm: str = "norm1") -> pd.DataFrame:
    """Return both numbers per block, in the states before and after a norm.

    In post-norm blocks, where the input of a norm is not a site, only those after it.

    Args:
        norm: ``norm1`` or ``norm2``.

    Raises:
        NothingToDraw: if cosine_channels was not computed at this norm.
    """
    sites = {norm: "after"}
    if norm in INPUTS and norm_position(analysis) == "before":
        sites |= {INPUTS[norm]: "before"}
    choose = {"parts": tuple(PARTS), "groups": "cls-patch"}
    rows_of(analysis, "cosine_channels", sites=norm, **choose)
    rows = rows_of(analysis, "cosine_channels", sites=tuple(sites), **choose)
    rows = rows.assign(norm=norm, state=rows["site"].map(sites))
    return rows[["model", "metric", "part", "norm", "state", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel per part, with a dashed line before the norm and a solid one after it."""
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, 1, len(parts), 66)
    look = COLOURS["cls-patch"], MARKERS["cls-patch"]
    for panel, _, _, inside in depth_panels(page, frame, None, ("part", parts), PARTS.__getitem__):
        for state, rows in inside.groupby("state"):
            depth_line(panel, rows, *look, hollow=state == "before")
        panel.tick_params(axis="y", which="both", left=True, labelleft=True)
        panel.set_ylim(bottom=0)
    states = [state for state in ("before", "after") if (frame["state"] == state).any()]
    norm = frame["norm"].iloc[0]
    page.legend([legend_handle(f"{state} {norm}", *look, state == "before") for state in states])
    page.header(frame, "mean over images")
    return page.figure
