"""How far each norm pulls CLS from the patches, block by block, in each model against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tokenlens.figures._models import (
    colour_of,
    comparison_note,
    grid,
    model_look,
    names_of,
    numbers_of,
    rows_of_models,
    small_marker,
)
from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures._rows import pair_title
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import paper, styled
from tokenlens.figures.style import FAINT, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.comparison.comparison import Comparison

OF = "comparison"
TITLE = "How far each norm pulls CLS from the patches, against the baseline"
ORDER = 230
CAPTION = (
    "The fall of CLS–patch cosine across each norm: for each block a line from the baseline (left) to the model "
    "(right), with the 95 % interval of each. A dot on top marks a difference that exceeds the noise "
    "(Benjamini–Hochberg q < 0.05); lines without one are faint. Models of different depth: each block stands beside "
    "the baseline's block at the nearest relative depth."
)
METRICS = ("norm_differentiation",)

ASIDE = 0.24
"""How far from its block's place a marker stands."""


def frame(
    comparison: Comparison, norms: str | Sequence[str] = ("norm1", "norm2"), group: str = "cls-patch"
) -> pd.DataFrame:
    """Differentiation per norm and block of each other model, the baseline's, and their difference.

    Args:
        comparison: where the numbers come from.
        norms: of ``norm1`` and ``norm2``.
        group: ``cls-patch`` or ``patch-patch``.

    Raises:
        NothingToDraw: if the baseline or all others have no such numbers.
    """
    table = rows_of_models(comparison, "norm_differentiation", parts="total", sites=norms, groups=group)
    table = table[table["block"].notna()]
    found = comparison.differences
    rows = found[(found["metric"] == "norm_differentiation") & (found["part"] == "total") & (found["group"] == group)]
    rows = rows[rows["site"].isin(table["site"].unique()) & rows["block"].notna() & rows["difference"].notna()]
    if rows.empty:
        raise NothingToDraw(f"norm_differentiation of {comparison.baseline} has nothing to set others against")
    rows = rows.rename(columns={"ci_low": "difference_low", "ci_high": "difference_high"})
    numbers = numbers_of(comparison)
    rows["model_number"] = rows["label"].map(numbers)
    rows["baseline_number"] = rows["baseline"].map(numbers)
    intervals = table[["label", "site", "block", "ci_low", "ci_high"]]
    rows = rows.merge(intervals, on=["label", "site", "block"], how="left")
    base = intervals.rename(
        columns={"label": "baseline", "block": "baseline_block", "ci_low": "baseline_low", "ci_high": "baseline_high"}
    )
    rows = rows.merge(base, on=["baseline", "site", "baseline_block"], how="left")
    rows["left_out"] = table["left_out"].iloc[0]
    columns = [
        "label",
        "model_number",
        "baseline",
        "baseline_number",
        "metric",
        "part",
        "site",
        "group",
        "block",
        "baseline_block",
        "depth",
        "value",
        "ci_low",
        "ci_high",
        "baseline_value",
        "baseline_low",
        "baseline_high",
        "difference",
        "difference_low",
        "difference_high",
        "effect",
        "p",
        "q",
        "n",
        "n_baseline",
        "test",
        "unit",
        "significant",
        "left_out",
    ]
    return rows.sort_values(["model_number", "site", "block"])[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row of panels for each other model and a column for each norm.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms = list(dict.fromkeys(frame["site"]))
    numbers = list(dict.fromkeys(frame["model_number"]))
    blocks = int(frame.groupby("label")["block"].nunique().max())
    most = 1 if paper().narrow and blocks > 16 else 2
    page, cells = grid(ax, numbers, norms, most, (24, 38 if len(numbers) < 4 else 30), sharey=True)
    for cell in cells:
        inside = frame[(frame["model_number"] == cell.row) & (frame["site"] == cell.column)]
        own = frame[frame["model_number"] == cell.row]
        slopes(cell.panel, inside)
        depth_axis(cell.panel, own["block"], room=7 * 2 / most)
        different = (own["block"] != own["baseline_block"]).any()
        cell.panel.set_xlabel(("the model's block" if different else "block") if cell.bottom or different else "")
        cell.panel.grid(axis="y")
        zero_line(cell.panel)
        if cell.top:
            page.title(cell.panel, cell.column)
        if cell.left:
            cell.panel.set_ylabel(f"fall of\n{pair_title(frame['group'].iloc[0])} cosine")
    low, high = page.axes.flat[0].get_ylim()
    for cell in cells:
        cell.panel.set_ylim(low, high + 0.06 * (high - low))
    base = frame[["baseline", "baseline_number"]].set_axis(["label", "model_number"], axis=1)
    page.legend(names_of(pd.concat([base, frame[["label", "model_number"]]])).handles(), columns=2)
    count, of = int(frame["significant"].sum()), len(frame)
    comparison_note(page, frame, f"bars: 95 % interval · dot on top: q < 0.05 ({count} of {of})")
    return page.figure


def slopes(panel: Axes, rows: pd.DataFrame) -> None:
    """For each block a line from the baseline's value to the model's, and a dot on top where they differ."""
    number, base = int(rows["model_number"].iloc[0]), int(rows["baseline_number"].iloc[0])
    block = rows["block"].to_numpy(dtype=float)
    aside = 0.0 if len(block) > 28 else ASIDE
    significant = rows["significant"].to_numpy(dtype=bool)
    ends = []
    for who, shift, prefix in ((base, -aside, "baseline_"), (number, aside, "")):
        y = rows[f"{prefix}value"].to_numpy(dtype=float)
        low, high = (rows[f"{prefix or 'ci_'}{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        panel.vlines(block + shift, low, high, color=colour_of(who), linewidth=0.8, zorder=3)
        look = {**model_look(who), "linestyle": "none", "markersize": small_marker()}
        panel.plot(block[significant] + shift, y[significant], zorder=4, **look)
        panel.plot(block[~significant] + shift, y[~significant], zorder=4, **{**look, "markerfacecolor": PAPER})
        ends.append(y)
    for sure, colour, width in ((True, colour_of(number), 1.1), (False, FAINT, 0.5)):
        chosen = significant == sure
        gap = np.full(int(chosen.sum()), np.nan)  # one line with gaps is a smaller file than many lines
        x = np.stack([block[chosen] - aside, block[chosen] + aside, gap], axis=1).ravel()
        y = np.stack([ends[0][chosen], ends[1][chosen], gap], axis=1).ravel()
        panel.plot(x, y, color=colour, linewidth=width, zorder=2)
    if significant.any():
        top = np.full(int(significant.sum()), 0.985)
        panel.plot(
            block[significant],
            top,
            transform=panel.get_xaxis_transform(),
            linestyle="none",
            marker="o",
            markersize=1.6,
            color=colour_of(number),
            clip_on=False,
            zorder=5,
        )
