"""How long the tokens of each group are over the blocks, and how many patches stick out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import INTERVALS, depth_axis, depth_line, handle, log_axis
from tokenlens.figures._rows import GROUPS, in_order, rows_of
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "Length of the tokens"
ORDER = 90
CAPTION = (
    "Left: mean norm ‖x‖ per token group on the residual stream. Middle: the longest patch over the median patch of "
    "the same image. Right: the share of patches longer than three times that median (high-norm tokens)."
)
METRICS = ("token_norm",)

PARTS = {"mean": "norm ‖x‖", "max_over_median": "longest patch / median", "high_norm_share": "high-norm patches [%]"}


def frame(analysis: Analysis, site: str = "resid_post", parts: str | Sequence[str] = tuple(PARTS)) -> pd.DataFrame:
    """Norms per part, block and group at one site of the residual stream.

    Args:
        analysis: where the numbers come from.
        site: ``resid_pre``, ``resid_mid`` or ``resid_post``.
        parts: only these of ``mean``, ``max_over_median`` and ``high_norm_share``.

    Raises:
        NothingToDraw: if token_norm was not computed, or not at this site.
    """
    rows = rows_of(analysis, "token_norm", parts=parts, sites=site)
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
    below = paper().narrow and ax is None
    page = canvas(ax, *((len(parts), 1, 14 + 34 * len(parts)) if below else (1, len(parts), 62)))
    for panel, part in zip(page.axes.flat, parts, strict=True):
        inside = frame[frame["part"] == part].copy()
        if part == "high_norm_share":
            inside[["value", "ci_low", "ci_high"]] *= 100
        for group, rows in inside.groupby("group", sort=False):
            depth_line(panel, rows, COLOURS[str(group)], MARKERS[str(group)])
        depth_axis(panel, inside["block"], room=25 if below else 7, label=not below or part == parts[-1])
        panel.grid(axis="y")
        page.title(panel, PARTS[part])
        if part == "mean":
            log_axis(panel)
        else:
            panel.set_ylim(bottom=1.0 if part == "max_over_median" else 0.0)
    groups = in_order(frame["group"])
    page.legend([handle(GROUPS[group], COLOURS[group], MARKERS[group]) for group in groups])
    page.header(frame, f"at {frame['site'].iloc[0]} · {INTERVALS}")
    return page.figure
