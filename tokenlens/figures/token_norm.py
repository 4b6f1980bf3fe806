"""Norm of the tokens of each group over the blocks, and share of high-norm patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import INTERVALS, depth_axis, group_handles, group_lines, log_axis
from tokenlens.figures._rows import NUMBERS, rows_of
from tokenlens.figures.page import canvas, paper, styled

KIND = "analysis"
TITLE = "Norm of the tokens"
ORDER = 90
GROUP = "Length"
CAPTION = (
    "Mean norm ‖x‖ per token group in the residual stream; largest patch norm divided by the median patch norm of the "
    "same image; share of patches above three times that median (high-norm patches); share above the median + "
    "4·1.4826·MAD (outliers of the image's own spread)."
)
METRICS = ("token_norm",)

PARTS = {
    "mean": "norm ‖x‖",
    "max_over_median": "largest / median",
    "high_norm_share": "high-norm [%]",
    "outlier_share": "outliers [%]",
}


def frame(analysis: Analysis, site: str = "resid_post", parts: str | Sequence[str] = tuple(PARTS)) -> pd.DataFrame:
    """Return the norms per part, block and group at one site of the residual stream.

    Args:
        site: ``resid_pre``, ``resid_mid`` or ``resid_post``.
        parts: any of ``mean``, ``max_over_median``, ``high_norm_share`` and ``outlier_share``.

    Raises:
        NothingToDraw: if token_norm was not computed at this site.
    """
    rows = rows_of(analysis, "token_norm", parts=parts, sites=site)
    return rows[["model", "metric", "part", "site", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel each for the mean norm, the largest norm over the median, and the shares of high-norm patches."""
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    below = paper().narrow and ax is None
    page = canvas(ax, *((len(parts), 1, 14 + 34 * len(parts)) if below else (1, len(parts), 62)))
    for panel, part in zip(page.axes.flat, parts, strict=True):
        inside = frame[frame["part"] == part].copy()
        if part.endswith("share"):
            inside[["value", "ci_low", "ci_high"]] *= 100
        group_lines(panel, inside)
        depth_axis(panel, inside["block"], room=25 if below else 7, label=not below or part == parts[-1])
        panel.grid(axis="y")
        page.title(panel, PARTS[part])
        if part == "mean":
            log_axis(panel)
        else:
            panel.set_ylim(bottom=1.0 if part == "max_over_median" else 0.0)
    page.legend(group_handles(frame["group"]))
    page.header(frame, f"at {frame['site'].iloc[0]} · {INTERVALS}")
    return page.figure
