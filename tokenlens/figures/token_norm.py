"""How long the tokens of each group are over the blocks, and how many patches stick out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures import COLOURS, MARKERS
from tokenlens.figures._panels import INTERVALS, canvas, depth_axis, depth_line, handle, log_axis, styled
from tokenlens.figures._rows import GROUPS, in_order, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "Length of the tokens"
ORDER = 90
CAPTION = (
    "Left: mean norm ‖x‖ per token group on the residual stream. Middle: the longest patch over the median patch of "
    "the same image. Right: the share of patches longer than three times that median (high-norm tokens)."
)
METRICS = ("token_norm",)

PARTS = {"mean": "norm ‖x‖", "max_over_median": "longest patch / median", "high_norm_share": "high-norm patches [%]"}


def frame(analysis: Analysis, site: str = "resid_post") -> pd.DataFrame:
    """Norms per part, block and group at one site of the residual stream.

    Raises:
        NothingToDraw: if token_norm was not computed, or not at this site.
    """
    rows = rows_of(analysis, "token_norm", sites=[site])
    columns = ["model", "metric", "part", "site", "group", "block", "value", "sd", "n", "ci_low", "ci_high", "unit"]
    return rows[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a panel each for norms, longest over median, and the share of high-norm patches.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page = canvas(ax, 1, len(parts), 62)
    for panel, part in zip(page.axes[0], parts, strict=True):
        inside = frame[frame["part"] == part].copy()
        if part == "high_norm_share":
            inside[["value", "ci_low", "ci_high"]] *= 100
        for group, rows in inside.groupby("group", sort=False):
            depth_line(panel, rows, COLOURS[str(group)], MARKERS[str(group)])
        depth_axis(panel, inside["block"], room=7)
        panel.grid(axis="y")
        panel.set_title(PARTS[part])
        if part == "mean":
            log_axis(panel)
        else:
            panel.set_ylim(bottom=1.0 if part == "max_over_median" else 0.0)
    groups = in_order(frame["group"])
    page.legend([handle(GROUPS[group], COLOURS[group], MARKERS[group]) for group in groups])
    page.header(frame, f"at {frame['site'].iloc[0]} · {INTERVALS}")
    return page.figure
