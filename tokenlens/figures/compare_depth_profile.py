"""Several models' CLS–patch and patch–patch cosine over the depth, before and after each norm; or any other metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._models import (
    check_axis,
    comparison_note,
    grid,
    model_lines,
    models_depth_axis,
    names_of,
    rows_of_models,
    shared,
)
from tokenlens.figures._panels import INTERVALS, log_axis, zero_line
from tokenlens.figures._rows import GROUPS, in_order, pair_title
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import paper, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.comparison.comparison import Comparison

OF = "comparison"
TITLE = "Cosine of CLS and patches over the depth, model by model"
ORDER = 220
CAPTION = (
    "Mean cosine of CLS with the patches, and of the patches with each other, at the input and the output of each "
    "norm. Relative depth is (block + ½) / blocks, so that models of different depth overlay. Where a model's line "
    "falls from before to after, its norm pulls apart."
)
METRICS = ("norm_differentiation", "cls_patch_cosine", "patch_patch_cosine")

AROUND_NORMS = {"before": "before {}", "after": "after {}"}
SITES = ("resid_pre", "norm1", "resid_mid", "norm2")
"""The sites of a metric that are shown where none are chosen, if it has them."""


def frame(
    comparison: Comparison,
    metric: str | None = None,
    sites: str | Sequence[str] | None = None,
    part: str | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The numbers over the depth, of each model.

    Args:
        comparison: where the numbers come from.
        metric: a metric with a value for each block; the default is the cosines on both sides of each norm.
        sites: only these sites; with the default metric only these of ``norm1`` and ``norm2``.
        part: of a metric with several parts; by default all of them.
        groups: only these groups or pairs of groups.

    Heads are averaged, and the interval's columns then hold the lowest and highest head.

    Raises:
        NothingToDraw: if fewer than two models have such numbers.
    """
    if metric is None:
        sites = ["norm1", "norm2"] if sites is None else sites
        rows = rows_of_models(comparison, "norm_differentiation", parts=["before", "after"], sites=sites, groups=groups)
        rows["place"] = [AROUND_NORMS[part].format(site) for part, site in zip(rows["part"], rows["site"], strict=True)]
        rows["quantity"] = "cosine"
        order = {"before": 0, "after": 1}
        rows = rows.sort_values(["site", "part"], key=lambda column: column.replace(order), kind="stable")
    else:
        rows = rows_of_models(comparison, metric, parts=part, sites=sites, groups=groups)
        if sites is None and set(SITES) <= set(rows["site"]):
            rows = rows[rows["site"].isin(SITES)]
        rows["place"] = rows["site"]
        rows["quantity"] = rows["part"]
    rows = rows[rows["block"].notna() & rows["value"].notna()]
    if rows.empty:
        raise NothingToDraw(f"{metric or 'norm_differentiation'} has no value for each block")
    rows = shared(rows, ["place", "group", "quantity"])
    keys = ["label", "model_number", "model", "metric", "quantity", "group", "place", "site", "block", "depth"]
    columns = [*keys, "value", "n", "ci_low", "ci_high", "unit", "left_out"]
    if rows["head"].notna().any():
        rows = rows.groupby(keys, sort=False, as_index=False).agg(
            value=("value", "mean"),
            n=("n", "max"),
            ci_low=("value", "min"),
            ci_high=("value", "max"),
            unit=("unit", "first"),
            left_out=("left_out", "first"),
        )
        rows["band"] = "heads"
    else:
        rows["band"] = "interval"
    return rows[[*columns, "band"]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None, axis: str = "relative", log: bool = False) -> Figure:
    """Draw it: a column of panels for each site, a row for each group or pair of groups; a line for each model.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
        axis: ``"relative"`` depth or ``"block"``.
        log: a logarithmic axis.
    """
    check_axis(axis)
    sites = list(dict.fromkeys(frame["place"]))
    quantities = dict.fromkeys(frame["quantity"])
    rows = [(quantity, group) for quantity in quantities for group in in_order(frame["group"])]
    together = len(quantities) == 1
    most, height = (2, 27) if paper().narrow else (4, 32)
    page, cells = grid(ax, rows, sites, most, (22, height), sharey=together or "row")
    for cell in cells:
        quantity, group = cell.row
        row = frame[(frame["quantity"] == quantity) & (frame["group"] == group)]
        inside = row[row["place"] == cell.column]
        if inside.empty:
            cell.panel.set_axis_off()
            continue
        model_lines(cell.panel, inside, axis)
        models_depth_axis(cell.panel, frame, axis, label=cell.bottom)
        if frame["value"].min() < 0 < frame["value"].max() and not log:
            zero_line(cell.panel)
        if cell.top:
            page.title(cell.panel, cell.column)
        if cell.left:
            cell.panel.set_ylabel(_ylabel(row))
            if log:
                log_axis(cell.panel)
    page.level()
    page.legend(names_of(frame).handles(), columns=3)
    heads = (frame["band"] == "heads").any()
    bands = "mean of the heads; bands: lowest to highest head" if heads else INTERVALS
    bands = bands if frame["ci_low"].notna().any() else ""
    metrics = [name for name in dict.fromkeys(frame["metric"]) if name != "norm_differentiation"]
    comparison_note(page, frame, " · ".join(filter(None, [*metrics, bands])))
    return page.figure


def _ylabel(rows: pd.DataFrame) -> str:
    group, unit = pair_title(str(rows["group"].iloc[0])), str(rows["unit"].iloc[0])
    quantity = str(rows["quantity"].iloc[0]).replace("_", " ")
    if unit == "cosine" and quantity in ("", "cosine"):
        return f"{group} cosine"
    what = GROUPS.get(str(rows["group"].iloc[0]), group)
    return f"{what}: {quantity}\n[{unit}]" if quantity and quantity != unit else f"{what} [{unit}]"
