"""CLS–patch and patch–patch cosine before and after each norm, or any other metric, over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import (
    INTERVALS,
    depth_line,
    depth_panels,
    draw_before_after,
    legend_handle,
    log_axis,
    zero_line,
)
from tokenlens.figures._rows import BEFORE_AFTER, before_after, rows_of, rows_of_norms, with_bands
from tokenlens.figures.base import NothingToDraw, group_title, sort_groups
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import COLOURS, INK, MARKERS

KIND = "analysis"
TITLE = "Cosine of CLS and patches before and after each norm"
ORDER = 10
GROUP = "Cosines"
CAPTION = (
    "Mean cosine of CLS and patches, and between patches, over the blocks. Dashed: input of the norm; solid: output. "
    "A norm that differentiates lowers the CLS–patch cosine more than the patch–patch cosine. Vectors with cosine 1 "
    "have the same direction, with 0 they are orthogonal, below 0 opposed."
)
METRICS = ("norm_differentiation", "cls_patch_cosine", "patch_patch_cosine")

SITE_COLOURS = {
    "resid_pre": "#1b1b1f",
    "norm1": "#332288",
    "q": "#AA4499",
    "k": "#882255",
    "v": "#CC6677",
    "attn_out": "#117733",
    "resid_mid": "#6b6b76",
    "norm2": "#88CCEE",
    "mlp_out": "#999933",
    "resid_post": "#a8a8b0",
    "pattern": "#332288",
}
"""Colours of sites (Tol's muted palette and greys), none of which belongs to a token group."""

SITE_MARKERS = dict(zip(SITE_COLOURS, "ov^<>sDdpPX", strict=True))


def frame(
    analysis: Analysis,
    metric: str | None = None,
    sites: str | Sequence[str] | None = None,
    part: str | None = None,
    norms: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the numbers over blocks.

    For a metric per head, the values are means over heads, and the interval holds the lowest and the highest head.

    Args:
        metric: a metric with a value per block; by default the cosines at the input and output of each norm.
        sites: only these sites, in one panel; by default a metric of token sites is shown around each norm.
        part: one part of a metric that has several; by default all, with a panel each.
        norms: around norms, any of ``norm1``, ``norm2`` and ``final_norm``.

    Raises:
        NothingToDraw: if the metric was not computed, does not apply, or has no value per block.
    """
    if metric is None:
        return _around_norms(analysis, norms)
    rows = rows_of(analysis, metric, parts=None if part is None else [part], sites=sites)
    if sites is None and part is None and {"resid_pre", "norm1"} <= set(rows["site"]):
        return before_after(analysis, [metric], norms)
    rows = rows[rows["block"].notna()]
    if rows.empty:
        raise NothingToDraw(f"{metric} of {analysis.model} has no value for each block")
    keys = ["model", "metric", "part", "group", "site", "block"]
    columns = [*keys, "value", "ci_low", "ci_high", "n", "unit", "band"]
    return with_bands(rows, keys)[columns].reset_index(drop=True)


def _around_norms(analysis: Analysis, norms: str | Sequence[str] | None) -> pd.DataFrame:
    """Return the cosines at each norm's input and output, from norm_differentiation if it was computed."""
    if (analysis.table["metric"] == "norm_differentiation").any():
        rows = rows_of_norms(analysis, "norm_differentiation", parts=["before", "after"], norms=norms)
        return rows.rename(columns={"part": "state"})[list(BEFORE_AFTER)]
    have = [name for name in ("cls_patch_cosine", "patch_patch_cosine") if (analysis.table["metric"] == name).any()]
    return before_after(analysis, have or ["cls_patch_cosine"], norms)


@styled
def plot(frame: pd.DataFrame, ax: Any = None, log: bool = False) -> Figure:
    """Draw one panel per norm, or one per part of the metric.

    Args:
        log: whether the axis is logarithmic.
    """
    if "state" in frame:
        metrics = list(dict.fromkeys(frame["metric"]))
        cosines = set(frame["unit"]) == {"cosine"}
        named = metrics == ["norm_differentiation"] or len(metrics) > 1
        label = "cosine" if named else f"{metrics[0]} [{frame['unit'].iloc[0]}]"
        return draw_before_after(frame, ax, label, zero=cosines, log=log)
    return _draw_parts(frame, ax, log)


def _draw_parts(frame: pd.DataFrame, ax: Any, log: bool) -> Figure:
    """Draw a row of panels per part, with a line per site; several groups get a column of panels per site instead."""
    parts, groups = list(dict.fromkeys(frame["part"])), sort_groups(frame["group"])
    sites = [site for site in SITE_COLOURS if site in set(frame["site"])]
    sites += sorted(set(frame["site"]) - set(sites))
    by_group, handles = len(groups) > 1, {}
    frame = frame.assign(column=frame["site"] if by_group else "")
    columns = sites if by_group else [""]
    most = 3 if paper().narrow and ax is None else len(columns)
    if len(columns) > most:
        raise NothingToDraw(
            f"{len(columns)} sites do not fit side by side into {paper().width:g} mm; choose at most {most} with the "
            f"option sites: {', '.join(sites)}"
        )
    page = canvas(ax, len(parts), len(columns), 20 + 50 * len(parts), sharex="col", sharey="row")
    for panel, _, _, inside in depth_panels(page, frame, ("part", parts), ("column", columns), str):
        for site in sites:
            for group in groups:
                rows = inside[(inside["site"] == site) & (inside["group"] == group)]
                if rows.empty:
                    continue
                colour = COLOURS.get(group, INK) if by_group else SITE_COLOURS.get(site, INK)
                marker = (MARKERS if by_group else SITE_MARKERS).get(group if by_group else site, "o")
                depth_line(panel, rows, colour, marker)
                label = group_title(group) if by_group else f"{group_title(group)} at {site}"
                handles[label] = legend_handle(label, colour, marker)
        if inside["value"].min() < 0 < inside["value"].max():
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if log:
            log_axis(first)
        unit = frame.loc[frame["part"] == part, "unit"].iloc[0]
        first.set_ylabel(f"{part} [{unit}]" if part else unit)
    page.level()
    order = [group_title(group) for group in groups]
    page.legend([handles[label] for label in sorted(handles, key=order.index)] if by_group else list(handles.values()))
    heads = (frame["band"] == "heads").any()
    bands = "mean of the heads; bands: lowest to highest head" if heads else INTERVALS
    metrics = ", ".join(dict.fromkeys(frame["metric"]))
    page.header(frame, f"{metrics} · {bands}" if frame["ci_low"].notna().any() else metrics)
    return page.figure
