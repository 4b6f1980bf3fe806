"""Fall of the CLS–patch cosine across each norm, by block, for each model against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._comparison_panels import grid, small_marker
from tokenlens.figures._comparison_rows import TESTED, comparison_note, numbers_of, rows_of_models
from tokenlens.figures._model_labels import model_labels
from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import paper, styled
from tokenlens.figures.style import FAINT, PAPER, model_colour, model_look

KIND = "comparison"
TITLE = "Differentiation by each norm, compared with the baseline"
ORDER = 230
CAPTION = (
    "Fall of the CLS–patch cosine across each norm. In each block a line connects the baseline (left) with the model "
    "(right), both with 95 % intervals. A dot at the top marks a significant difference (Benjamini–Hochberg q < "
    "0.05); other lines are faint. In models of different depth, each block is compared with the baseline's block at "
    "the nearest relative depth."
)
METRICS = ("norm_differentiation",)

ASIDE = 0.24
"""Horizontal distance of a marker from its block number."""


def frame(
    comparison: Comparison, norms: str | Sequence[str] = ("norm1", "norm2"), group: str = "cls-patch"
) -> pd.DataFrame:
    """Return differentiation per norm and block for each model and the baseline, and their difference.

    Args:
        norms: one or both of ``norm1`` and ``norm2``.
        group: ``cls-patch`` or ``patch-patch``.

    Raises:
        NothingToDraw: if the baseline or all other models have no such numbers.
    """
    table = rows_of_models(comparison, "norm_differentiation", parts="total", sites=norms, groups=group)
    table = table[table["block"].notna()]
    found = comparison.differences
    rows = found[(found["metric"] == "norm_differentiation") & (found["part"] == "total") & (found["group"] == group)]
    rows = rows[rows["site"].isin(table["site"].unique()) & rows["block"].notna() & rows["difference"].notna()]
    if rows.empty:
        raise NothingToDraw(f"norm_differentiation of {comparison.baseline} cannot be compared with another model")
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
    keys = ["label", "model_number", "baseline", "baseline_number", "metric", "part", "site", "group"]
    keys += ["block", "baseline_block", "depth"]
    values = ["value", "ci_low", "ci_high", "baseline_value", "baseline_low", "baseline_high"]
    values += ["difference", "difference_low", "difference_high", "effect"]
    columns = [*keys, *values, *TESTED, "left_out"]
    return rows.sort_values(["model_number", "site", "block"])[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row of panels per model other than the baseline, and a column per norm."""
    norms = list(dict.fromkeys(frame["site"]))
    numbers = list(dict.fromkeys(frame["model_number"]))
    blocks = int(frame.groupby("label")["block"].nunique().max())
    most = 1 if paper().narrow and blocks > 16 else 2
    page, panels = grid(ax, numbers, norms, most, (24, 38 if len(numbers) < 4 else 30), sharey=True)
    for panel in panels:
        inside = frame[(frame["model_number"] == panel.row) & (frame["site"] == panel.column)]
        of_model = frame[frame["model_number"] == panel.row]
        slopes(panel.axes, inside)
        depth_axis(panel.axes, of_model["block"], room=7 * 2 / most)
        different = (of_model["block"] != of_model["baseline_block"]).any()
        panel.axes.set_xlabel(("the model's block" if different else "block") if panel.bottom or different else "")
        panel.axes.grid(axis="y")
        zero_line(panel.axes)
        if panel.top:
            page.title(panel.axes, panel.column)
        if panel.left:
            panel.axes.set_ylabel(f"fall of\n{group_title(frame['group'].iloc[0])} cosine")
    low, high = page.axes.flat[0].get_ylim()
    for panel in panels:
        panel.axes.set_ylim(low, high + 0.06 * (high - low))
    base = frame[["baseline", "baseline_number"]].set_axis(["label", "model_number"], axis=1)
    page.legend(model_labels(pd.concat([base, frame[["label", "model_number"]]])).handles(), columns=2)
    count, of = int(frame["significant"].sum()), len(frame)
    comparison_note(page, frame, f"bars: 95 % interval · dot at the top: q < 0.05 ({count} of {of})")
    return page.figure


def slopes(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw a line from the baseline's value to the model's in each block, with a dot at the top if they differ."""
    number, base = int(rows["model_number"].iloc[0]), int(rows["baseline_number"].iloc[0])
    block = rows["block"].to_numpy(dtype=float)
    aside = 0.0 if len(block) > 28 else ASIDE
    significant = rows["significant"].to_numpy(dtype=bool)
    ends = []
    for who, shift, prefix in ((base, -aside, "baseline_"), (number, aside, "")):
        y = rows[f"{prefix}value"].to_numpy(dtype=float)
        low, high = (rows[f"{prefix or 'ci_'}{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        panel.vlines(block + shift, low, high, color=model_colour(who), linewidth=0.8, zorder=3)
        look = {**model_look(who), "linestyle": "none", "markersize": small_marker()}
        panel.plot(block[significant] + shift, y[significant], zorder=4, **look)
        panel.plot(block[~significant] + shift, y[~significant], zorder=4, **{**look, "markerfacecolor": PAPER})
        ends.append(y)
    for sure, colour, width in ((True, model_colour(number), 1.1), (False, FAINT, 0.5)):
        chosen = significant == sure
        gap = np.full(int(chosen.sum()), np.nan)  # one line with gaps makes a smaller file than many lines
        x = np.stack([block[chosen] - aside, block[chosen] + aside, gap], axis=1).ravel()
        y = np.stack([ends[0][chosen], ends[1][chosen], gap], axis=1).ravel()
        panel.plot(x, y, color=colour, linewidth=width, zorder=2)
    if significant.any():
        top = np.full(int(significant.sum()), 0.985)
        look = {"marker": "o", "markersize": 1.6, "color": model_colour(number)}
        above = panel.get_xaxis_transform()
        panel.plot(block[significant], top, transform=above, linestyle="none", clip_on=False, zorder=5, **look)
