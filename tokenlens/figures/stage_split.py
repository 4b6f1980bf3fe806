"""Which stage of each norm moves the cosines: centring, the weight γ or the bias β."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tokenlens.figures import INK, PAPER, STAGE_COLOURS
from tokenlens.figures._page import canvas, styled
from tokenlens.figures._panels import depth_panels, norm_columns, zero_line
from tokenlens.figures._rows import in_order, norm_title, pair_title, place_of, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "What each stage of the norm contributes"
ORDER = 20
CAPTION = (
    "The fall of the cosine across each norm, split exactly into the norm's stages: subtracting the mean (centring), "
    "the weight γ and the bias β. Dividing by σ cannot move a cosine. Bars add up to the total (diamond): above 0 "
    "the stage pulls apart, below 0 it brings together. RMSNorm has no centring."
)
METRICS = ("norm_differentiation",)

STAGES = {"centring": "centring (x − μ)", "gamma": "weight γ", "beta": "bias β"}


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, groups: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Contributions of the stages, and their total, per norm, block and pair of groups.

    Args:
        analysis: where the numbers come from.
        norms: only these of ``norm1``, ``norm2`` and ``final_norm``.
        groups: only these of ``cls-patch`` and ``patch-patch``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, does not apply, or has no such norm or groups.
    """
    parts = [*STAGES, "total"]
    rows = rows_of(analysis, "norm_differentiation", parts=parts, sites=norms, groups=groups)
    rows = rows.rename(columns={"part": "stage", "site": "norm"})
    rows["place"] = place_of(analysis)
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    columns = ["model", "metric", "norm", "place", "group", "block", "stage", "value", "sd", "n", "ci_low", "ci_high"]
    return rows[[*columns, "unit"]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: signed, stacked bars, a row of panels for each pair of groups and a column for each norm.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms, widths = norm_columns(frame["norm"])
    groups = in_order(frame["group"])
    page = canvas(ax, len(groups), len(norms), 25 + 46 * len(groups), sharex="col", sharey="row", width_ratios=widths)
    down, across = ("group", groups), ("norm", norms)
    for panel, _, _, inside in depth_panels(page, frame, down, across, norm_title(frame), widths):
        stack(panel, inside)
        zero_line(panel)
    for first, group in zip(page.axes[:, 0], groups, strict=True):
        first.set_ylabel(f"fall of {pair_title(group)} cosine")
    page.level()
    page.legend(stage_handles(frame))
    page.header(frame, "mean over images; bar on the total: 95 % interval")
    return page.figure


_TOTAL: dict[str, Any] = {
    "linestyle": "none", "marker": "D", "markersize": 3, "markerfacecolor": PAPER, "markeredgecolor": INK
}


def stage_handles(frame: pd.DataFrame) -> list[Any]:
    """The legend's entries for the stages that a frame has, and for their total."""
    present = [stage for stage in STAGES if (frame["stage"] == stage).any()]
    bars = [Patch(facecolor=STAGE_COLOURS[stage], label=STAGES[stage]) for stage in present]
    return [*bars, Line2D([], [], label="total: before − after", **_TOTAL)]


def stack(panel: Axes, inside: pd.DataFrame, place: str = "block", width: float = 0.72) -> None:
    """Signed, stacked bars of the stages from zero outwards, and the total with its interval.

    Args:
        panel: what to draw on.
        inside: rows with the columns ``stage``, ``value``, ``ci_low``, ``ci_high`` and ``place``.
        place: the column that says where on the x axis a bar stands; whole numbers.
        width: of a bar.
    """
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    for stage in STAGES:
        rows = inside[inside["stage"] == stage].dropna(subset=["value"])
        if rows.empty:
            continue
        blocks = [int(block) for block in rows[place]]
        values = rows["value"].to_numpy(dtype=float)
        bottoms = np.array([(up if v >= 0 else down).get(b, 0.0) for b, v in zip(blocks, values, strict=True)])
        panel.bar(blocks, values, width, bottom=bottoms, color=STAGE_COLOURS[stage], linewidth=0, zorder=2)
        for block, value, bottom in zip(blocks, values, bottoms, strict=True):
            (up if value >= 0 else down)[block] = float(bottom + value)
    total = inside[inside["stage"] == "total"]
    x, y = total[place].to_numpy(dtype=float), total["value"].to_numpy(dtype=float)
    low, high = total["ci_low"].to_numpy(dtype=float), total["ci_high"].to_numpy(dtype=float)
    panel.vlines(x, low, high, color=INK, linewidth=0.9, zorder=4)
    panel.plot(x, y, zorder=5, **_TOTAL)
