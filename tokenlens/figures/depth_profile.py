"""CLS–patch and patch–patch cosine over the blocks, before and after each norm; or any other metric over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures import COLOURS, MARKERS, NothingToDraw
from tokenlens.figures._panels import (
    INTERVALS, canvas, depth_axis, depth_line, draw_before_after, handle, log_axis, styled, zero_line,
)
from tokenlens.figures._rows import before_after, pair_title, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

TITLE = "Cosine of CLS and patches, before and after each norm"
ORDER = 10
CAPTION = (
    "Mean cosine of CLS with the patches, and of the patches with each other, over the blocks. Dashed: what goes into the "
    "norm; solid: what comes out. A norm that differentiates pulls the CLS–patch line down further than the patch–patch "
    "line. 1 is the same direction, 0 unrelated, below 0 opposed. Definitions: cls_patch_cosine, patch_patch_cosine."
)

SITE_COLOURS = {
    "resid_pre": "#1b1b1f", "norm1": "#332288", "q": "#AA4499", "k": "#882255", "v": "#CC6677", "attn_out": "#117733",
    "resid_mid": "#6b6b76", "norm2": "#88CCEE", "mlp_out": "#999933", "resid_post": "#a8a8b0", "pattern": "#332288",
}
"""Colours of sites (Tol's muted set and greys): none of a token group's."""

SITE_MARKERS = dict(zip(SITE_COLOURS, "ov^<>sDdpPX", strict=True))


def frame(
    analysis: Analysis, metric: str | None = None, sites: Sequence[str] | None = None, part: str | None = None
) -> pd.DataFrame:
    """The numbers over blocks.

    Args:
        analysis: where the numbers come from.
        metric: a metric with a value for each block; the default is the cosines on both sides of each norm.
        sites: only these sites, drawn in one panel; by default a metric of token sites is shown around each norm.
        part: of a metric with several parts; by default all of them, a panel each.

    Heads are averaged, and the interval's columns then hold the lowest and highest head.

    Raises:
        NothingToDraw: if the metric was not computed, does not apply, or has no value for each block.
    """
    if metric is None:
        return _around_norms(analysis)
    rows = rows_of(analysis, metric, parts=None if part is None else [part], sites=sites)
    if sites is None and part is None and {"resid_pre", "norm1"} <= set(rows["site"]):
        return before_after(analysis, [metric])
    rows = rows[rows["block"].notna()]
    if rows.empty:
        raise NothingToDraw(f"{metric} of {analysis.model} has no value for each block")
    keys = ["model", "metric", "part", "group", "site", "block"]
    if rows["head"].notna().any():
        by = rows.groupby(keys, sort=False)
        averaged = by.agg(value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max"), n=("n", "max"),
                          unit=("unit", "first")).reset_index()
        averaged["band"] = "heads"
        return averaged
    rows = rows[[*keys, "value", "ci_low", "ci_high", "n", "unit"]].copy()
    rows["band"] = "interval"
    return rows.reset_index(drop=True)


def _around_norms(analysis: Analysis) -> pd.DataFrame:
    """The norm's own input and output, which norm_differentiation reports; it is right for post-norm models, too."""
    if (analysis.table["metric"] == "norm_differentiation").any():
        rows = rows_of(analysis, "norm_differentiation", parts=["before", "after"])
        rows = rows.rename(columns={"part": "state"})
        rows["norm"] = rows["site"]
        rows.loc[rows["site"] == "final_norm", "block"] = analysis.blocks
        columns = ["model", "metric", "group", "norm", "state", "block", "site", "value", "sd", "n", "ci_low", "ci_high"]
        return rows[[*columns, "unit"]].reset_index(drop=True)
    have = [name for name in ("cls_patch_cosine", "patch_patch_cosine") if (analysis.table["metric"] == name).any()]
    return before_after(analysis, have or ["cls_patch_cosine"])


@styled
def plot(frame: pd.DataFrame, ax: Any = None, log: bool = False) -> Figure:
    """Draw it: a panel for each norm, or for each part of the metric.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
        log: a logarithmic axis.
    """
    if "state" in frame:
        metrics = list(dict.fromkeys(frame["metric"]))
        cosines = set(frame["unit"]) == {"cosine"}
        named = metrics == ["norm_differentiation"] or len(metrics) > 1
        label = "cosine" if named else f"{metrics[0]} [{frame['unit'].iloc[0]}]"
        return draw_before_after(frame, ax, label, zero=cosines, log=log)
    parts = list(dict.fromkeys(frame["part"]))
    page = canvas(ax, len(parts), 1, 20 + 50 * len(parts), sharex=True)
    groups, sites = list(dict.fromkeys(frame["group"])), list(dict.fromkeys(frame["site"]))
    by_site = len(groups) == 1
    handles = {}
    for panel, part in zip(page.axes[:, 0], parts, strict=True):
        inside = frame[frame["part"] == part]
        for index, site in enumerate(sites):
            for group in groups:
                rows = inside[(inside["site"] == site) & (inside["group"] == group)]
                if rows.empty:
                    continue
                look = (
                    (SITE_COLOURS.get(site, "#1b1b1f"), SITE_MARKERS.get(site, "o")) if by_site
                    else (COLOURS.get(group, "#1b1b1f"), MARKERS.get(group, "o"))
                )
                hollow = not by_site and index > 0
                depth_line(panel, rows, *look, hollow=hollow)
                label = site if by_site else (pair_title(group) + (f", {site}" if len(sites) > 1 else ""))
                handles[label] = handle(label, *look, hollow)
        unit = inside["unit"].iloc[0]
        name = inside["metric"].iloc[0] + (f" {part}" if part else "")
        panel.set_ylabel(name if unit in ("", name) else f"{name} [{unit}]")
        panel.grid(axis="y")
        low, high = inside["value"].min(), inside["value"].max()
        if low < 0 < high:
            zero_line(panel)
        if log:
            log_axis(panel)
        depth_axis(panel, inside["block"], label=part == parts[-1])
    page.legend(list(handles.values()), columns=5)
    heads = (frame["band"] == "heads").any()
    page.header(frame, "mean of the heads; bands: lowest to highest head" if heads else INTERVALS)
    return page.figure
