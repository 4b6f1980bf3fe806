"""Share of each token group, and of the bias, in what attention writes to CLS."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import INTERVALS, depth_line, depth_panels, legend_handle, log_axis, zero_line
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.base import GROUP_NAMES, sort_groups
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, FAINT, MARKERS

KIND = "analysis"
TITLE = "Sources of the CLS update"
ORDER = 85
GROUP = "Length"
CAPTION = (
    "Left: share ⟨u_g, u⟩/‖u‖² of each token group g in the update u that attention writes to CLS, and of the bias of "
    "the output projection; the shares of a block sum to 1. Right: norms of these parts."
)
METRICS = ("cls_update",)

PANELS = {"share": "share of the update", "norm": "norm ‖u‖"}
BIAS = "output bias"


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return shares and norms per block and source: a token group, ``bias`` (an attention bias) or ``output bias``.

    Raises:
        NothingToDraw: if cls_update was not computed, which is opt-in, or does not apply.
    """
    rows = rows_of(analysis, "cls_update", parts=("share", "norm", "bias_share", "bias_norm"))
    rows["source"] = rows["group"].str.removeprefix("cls-").where(~rows["part"].str.startswith("bias"), BIAS)
    rows["panel"] = rows["part"].str.removeprefix("bias_")
    return rows[["model", "metric", "part", "panel", "source", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel each for shares and norms, a line per source."""
    panels = [name for name in PANELS if (frame["panel"] == name).any()]
    page = canvas(ax, 1, len(panels), 66)
    looks = {group: (COLOURS[group], MARKERS[group]) for group in sort_groups(set(frame["source"]) - {BIAS})}
    looks[BIAS] = (FAINT, "x")
    for panel, _, name, inside in depth_panels(page, frame, None, ("panel", panels), PANELS.__getitem__):
        if name == "norm":  # the axis is logarithmic: a band that reaches below 0 ends below the drawing
            inside = inside.assign(ci_low=inside["ci_low"].clip(lower=inside["value"].min() / 10))
        for source, look in looks.items():
            if len(rows := inside[inside["source"] == source]):
                depth_line(panel, rows, *look)
        panel.tick_params(axis="y", which="both", left=True, labelleft=True)
        if name == "share":
            zero_line(panel)
        elif (inside["value"] > 0).all():
            log_axis(panel)
    page.legend([legend_handle(GROUP_NAMES.get(source, source), *look) for source, look in looks.items()])
    page.header(frame, INTERVALS)
    return page.figure
