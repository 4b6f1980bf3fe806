"""CLS–patch and patch–patch cosine over the blocks, before and after each norm; or any other metric over the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import (
    INTERVALS,
    depth_line,
    depth_panels,
    draw_before_after,
    handle,
    log_axis,
    zero_line,
)
from tokenlens.figures._rows import BEFORE_AFTER, before_after, in_order, pair_title, place_of, rows_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import COLOURS, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "Cosine of CLS and patches, before and after each norm"
ORDER = 10
CAPTION = (
    "Mean cosine of CLS with the patches, and of the patches with each other, over the blocks. Dashed: what goes "
    "into the norm; solid: what comes out. A norm that differentiates pulls the CLS–patch line down further than the "
    "patch–patch line. 1 is the same direction, 0 unrelated, below 0 opposed."
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
"""Colours of sites (Tol's muted set and greys): none of a token group's."""

SITE_MARKERS = dict(zip(SITE_COLOURS, "ov^<>sDdpPX", strict=True))


def frame(
    analysis: Analysis,
    metric: str | None = None,
    sites: str | Sequence[str] | None = None,
    part: str | None = None,
    norms: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The numbers over blocks.

    Args:
        analysis: where the numbers come from.
        metric: a metric with a value for each block; the default is the cosines on both sides of each norm.
        sites: only these sites, drawn in one panel; by default a metric of token sites is shown around each norm.
        part: of a metric with several parts; by default all of them, a panel each.
        norms: around norms, only these of ``norm1``, ``norm2`` and ``final_norm``.

    Heads are averaged, and the interval's columns then hold the lowest and highest head.

    Raises:
        NothingToDraw: if the metric was not computed, does not apply, or has no value for each block.
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
    if rows["head"].notna().any():
        by = rows.groupby(keys, sort=False)
        averaged = by.agg(
            value=("value", "mean"),
            ci_low=("value", "min"),
            ci_high=("value", "max"),
            n=("n", "max"),
            unit=("unit", "first"),
        ).reset_index()
        averaged["band"] = "heads"
        return averaged
    rows = rows[[*keys, "value", "ci_low", "ci_high", "n", "unit"]].copy()
    rows["band"] = "interval"
    return rows.reset_index(drop=True)


def _around_norms(analysis: Analysis, norms: str | Sequence[str] | None) -> pd.DataFrame:
    """The norm's own input and output, which norm_differentiation reports; it is right for post-norm models, too."""
    if (analysis.table["metric"] == "norm_differentiation").any():
        rows = rows_of(analysis, "norm_differentiation", parts=["before", "after"], sites=norms)
        rows = rows.rename(columns={"part": "state"})
        rows["norm"], rows["place"] = rows["site"], place_of(analysis)
        rows.loc[rows["site"] == "final_norm", "block"] = analysis.blocks
        return rows[list(BEFORE_AFTER)].reset_index(drop=True)
    have = [name for name in ("cls_patch_cosine", "patch_patch_cosine") if (analysis.table["metric"] == name).any()]
    return before_after(analysis, have or ["cls_patch_cosine"], norms)


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
    return _series(frame, ax, log)


def _series(frame: pd.DataFrame, ax: Any, log: bool) -> Figure:
    """A row of panels for each part. One group: a line for each site; several: a column for each site."""
    parts, groups = list(dict.fromkeys(frame["part"])), in_order(frame["group"])
    sites = [site for site in SITE_COLOURS if site in set(frame["site"])]
    sites += sorted(set(frame["site"]) - set(sites))
    by_group, handles = len(groups) > 1, {}
    frame = frame.assign(column=frame["site"] if by_group else "")
    columns = sites if by_group else [""]
    most = 3 if paper().narrow and ax is None else len(columns)
    if len(columns) > most:
        raise NothingToDraw(
            f"{len(columns)} sites side by side do not fit into {paper().width:g} mm; choose up to {most} with sites: "
            f"{', '.join(sites)}"
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
                label = pair_title(group) if by_group else f"{pair_title(group)} at {site}"
                handles[label] = handle(label, colour, marker)
        if inside["value"].min() < 0 < inside["value"].max():
            zero_line(panel)
    for first, part in zip(page.axes[:, 0], parts, strict=True):
        if log:
            log_axis(first)
        unit = frame.loc[frame["part"] == part, "unit"].iloc[0]
        first.set_ylabel(f"{part} [{unit}]" if part else unit)
    page.level()
    order = [pair_title(group) for group in groups]
    page.legend([handles[label] for label in sorted(handles, key=order.index)] if by_group else list(handles.values()))
    heads = (frame["band"] == "heads").any()
    bands = "mean of the heads; bands: lowest to highest head" if heads else INTERVALS
    metrics = ", ".join(dict.fromkeys(frame["metric"]))
    page.header(frame, f"{metrics} · {bands}" if frame["ci_low"].notna().any() else metrics)
    return page.figure
