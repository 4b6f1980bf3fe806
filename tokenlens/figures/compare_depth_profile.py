"""CLS–patch and patch–patch cosine, or any other metric, over the depth of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._comparison_panels import check_axis, grid, model_lines, models_depth_axis
from tokenlens.figures._comparison_rows import comparison_note, rows_of_models, shared_rows
from tokenlens.figures._model_labels import model_labels
from tokenlens.figures._panels import INTERVALS, log_axis, zero_line
from tokenlens.figures._rows import with_bands
from tokenlens.figures.base import GROUP_NAMES, NothingToDraw, group_title, sort_groups
from tokenlens.figures.page import paper, styled

KIND = "comparison"
TITLE = "Cosine of CLS and patches over depth, by model"
ORDER = 220
CAPTION = (
    "Mean cosine of CLS and patches, and between patches, at the input and output of each norm. Relative depth is "
    "(block + ½) / blocks, so that models of different depth can be compared. If a model's line falls from before "
    "to after the norm, the norm separates the tokens."
)
METRICS = ("norm_differentiation", "cls_patch_cosine", "patch_patch_cosine")

AROUND_NORMS = {"before": "before {}", "after": "after {}"}
SITES = ("resid_pre", "norm1", "resid_mid", "norm2")
"""Sites shown by default for a metric that has them."""


def frame(
    comparison: Comparison,
    metric: str | None = None,
    sites: str | Sequence[str] | None = None,
    part: str | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the numbers of each model over its depth.

    For a metric per head, the values are means over heads, and the interval holds the lowest and the highest head.

    Args:
        metric: a metric with a value per block; by default the cosines at the input and output of each norm.
        sites: only these sites; for the default metric, one or both of ``norm1`` and ``norm2``.
        part: one part of a metric that has several; by default all.
        groups: only these groups or pairs of groups.

    Raises:
        NothingToDraw: if fewer than two models have such numbers.
    """
    if metric is None:
        sites = ["norm1", "norm2"] if sites is None else sites
        rows = rows_of_models(comparison, "norm_differentiation", parts=["before", "after"], sites=sites, groups=groups)
        rows["panel"] = [AROUND_NORMS[part].format(site) for part, site in zip(rows["part"], rows["site"], strict=True)]
        rows["quantity"] = "cosine"
        order = {"before": 0, "after": 1}
        rows = rows.sort_values(["site", "part"], key=lambda column: column.replace(order), kind="stable")
    else:
        rows = rows_of_models(comparison, metric, parts=part, sites=sites, groups=groups)
        if sites is None and set(SITES) <= set(rows["site"]):
            rows = rows[rows["site"].isin(SITES)]
        rows["panel"] = rows["site"]
        rows["quantity"] = rows["part"]
    rows = rows[rows["block"].notna() & rows["value"].notna()]
    if rows.empty:
        raise NothingToDraw(f"{metric or 'norm_differentiation'} has no value for each block")
    rows = shared_rows(rows, ["panel", "group", "quantity"])
    keys = ["label", "model_number", "model", "metric", "quantity", "group", "panel", "site", "block", "depth"]
    columns = [*keys, "value", "n", "ci_low", "ci_high", "unit", "left_out", "band"]
    return with_bands(rows, keys, "left_out")[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None, axis: str = "relative", log: bool = False) -> Figure:
    """Draw a column of panels per site and a row per group or pair of groups, with a line per model.

    Args:
        axis: ``"relative"`` depth or ``"block"``.
        log: whether the axis is logarithmic.
    """
    check_axis(axis)
    sites = list(dict.fromkeys(frame["panel"]))
    quantities = dict.fromkeys(frame["quantity"])
    rows = [(quantity, group) for quantity in quantities for group in sort_groups(frame["group"])]
    together = len(quantities) == 1
    most, height = (2, 27) if paper().narrow else (4, 32)
    page, panels = grid(ax, rows, sites, most, (22, height), sharey=together or "row")
    for panel in panels:
        quantity, group = panel.row
        row = frame[(frame["quantity"] == quantity) & (frame["group"] == group)]
        inside = row[row["panel"] == panel.column]
        if inside.empty:
            panel.axes.set_axis_off()
            continue
        model_lines(panel.axes, inside, axis)
        models_depth_axis(panel.axes, frame, axis, label=panel.bottom)
        if frame["value"].min() < 0 < frame["value"].max() and not log:
            zero_line(panel.axes)
        if panel.top:
            page.title(panel.axes, panel.column)
        if panel.left:
            panel.axes.set_ylabel(_ylabel(row))
            if log:
                log_axis(panel.axes)
    page.level()
    page.legend(model_labels(frame).handles(), columns=3)
    heads = (frame["band"] == "heads").any()
    bands = "mean of the heads; bands: lowest to highest head" if heads else INTERVALS
    bands = bands if frame["ci_low"].notna().any() else ""
    metrics = [name for name in dict.fromkeys(frame["metric"]) if name != "norm_differentiation"]
    comparison_note(page, frame, " · ".join(filter(None, [*metrics, bands])))
    return page.figure


def _ylabel(rows: pd.DataFrame) -> str:
    group, unit = group_title(str(rows["group"].iloc[0])), str(rows["unit"].iloc[0])
    quantity = str(rows["quantity"].iloc[0]).replace("_", " ")
    if unit == "cosine" and quantity in ("", "cosine"):
        return f"{group} cosine"
    what = GROUP_NAMES.get(str(rows["group"].iloc[0]), group)
    return f"{what}: {quantity}\n[{unit}]" if quantity and quantity != unit else f"{what} [{unit}]"
