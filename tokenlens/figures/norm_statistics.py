"""Mean and variance that each norm computes, per token group, and the ratio of CLS's σ to the patches'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import INTERVALS, group_handles, group_lines, log_axis, norm_panels, zero_line
from tokenlens.figures._rows import NUMBERS, rows_of_norms
from tokenlens.figures.page import styled

KIND = "analysis"
TITLE = "Mean and variance inside each norm"
ORDER = 30
GROUP = "Norms"
CAPTION = (
    "Mean μ and variance σ² over channels, which each norm computes for a token and then removes, averaged per token "
    "group; and the log ratio of CLS's σ to the patches': above 0 the norm shrinks CLS more than patches. RMSNorm "
    "computes the mean square instead of mean and variance."
)
METRICS = ("norm_statistics",)

PARTS = {
    "mean": "mean μ",
    "variance": "variance σ²",
    "mean_square": "mean square",
    "log_std_ratio": "log(σ CLS / σ patch)",
}


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, parts: str | Sequence[str] = tuple(PARTS)
) -> pd.DataFrame:
    """Return the statistics per part, norm, block and group.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.
        parts: any of ``mean``, ``variance`` (or ``mean_square``) and ``log_std_ratio``.

    Raises:
        NothingToDraw: if norm_statistics was not computed, does not apply, or has no such norm or part.
    """
    rows = rows_of_norms(analysis, "norm_statistics", parts=parts, norms=norms)
    return rows[["model", "metric", "part", "norm", "norm_position", "group", "block", *NUMBERS]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row of panels per statistic and a column per norm."""
    parts = [part for part in PARTS if (frame["part"] == part).any()]
    page, panels = norm_panels(frame, ax, ("part", parts), (22, 36))
    for panel, part, _, inside in panels:
        group_lines(panel, inside)
        if part in ("mean", "log_std_ratio"):
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part in ("variance", "mean_square"):
            log_axis(first)
        unit = frame.loc[frame["part"] == part, "unit"].iloc[0]
        first.set_ylabel(PARTS[part] if part == "log_std_ratio" else f"{PARTS[part]}\n[{unit}]")
    page.level()
    page.legend(group_handles(group for group in frame["group"] if "-" not in group))
    page.header(frame, INTERVALS)
    return page.figure
