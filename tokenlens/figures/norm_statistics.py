"""The mean and variance that each norm computes, per token group, and the ratio of CLS's σ to the patches'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import INTERVALS, depth_line, depth_panels, handle, log_axis, norm_columns, zero_line
from tokenlens.figures._rows import in_order, norm_title, pair_title, place_of, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

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


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, parts: str | Sequence[str] = tuple(PARTS)
) -> pd.DataFrame:
    """Statistics per part, norm, block and group.

    Args:
        analysis: where the numbers come from.
        norms: only these of ``norm1``, ``norm2`` and ``final_norm``.
        parts: only these of ``mean``, ``variance`` (or ``mean_square``) and ``log_std_ratio``.

    Raises:
        NothingToDraw: if norm_statistics was not computed, does not apply, or has no such norm or part.
    """
    rows = rows_of(analysis, "norm_statistics", parts=parts, sites=norms).rename(columns={"site": "norm"})
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
    rows, columns = ("part", parts), ("norm", norms)
    for panel, part, _, inside in depth_panels(page, frame, rows, columns, norm_title(frame), widths):
        for group, line in inside.groupby("group", sort=False):
            depth_line(panel, line, COLOURS[str(group)], MARKERS[str(group)])
        if part in ("mean", "log_std_ratio"):
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if part in ("variance", "mean_square"):
            log_axis(first)
        unit = frame.loc[frame["part"] == part, "unit"].iloc[0]
        first.set_ylabel(PARTS[part] if part == "log_std_ratio" else f"{PARTS[part]}\n[{unit}]")
    groups = in_order(frame["group"])
    page.level()
    page.legend([handle(pair_title(group), COLOURS[group], MARKERS[group]) for group in groups if "-" not in group])
    page.header(frame, INTERVALS)
    return page.figure
