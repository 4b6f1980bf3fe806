"""Attention sinks of each head: how much attention they have, what they write, and in which token group they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import (
    block_ticks,
    colour_bar,
    depth_axis,
    group_handles,
    group_lines,
    heat_map,
    integer_ticks,
    remove_unused,
)
from tokenlens.figures._rows import NUMBERS, as_list, rows_of, with_bands
from tokenlens.figures.page import canvas, paper, styled

KIND = "analysis"
TITLE = "Attention sinks"
ORDER = 65
GROUP = "Attention"
CAPTION = (
    "Squares are heads. Largest attention: mean attention of all tokens to the one that gets most of it. The others "
    "are shares of images with a sink, a token with at least half of the attention of 90 % of the tokens: a NOP "
    "writes nearly nothing, its value has at most 0.2 of the average length; a broadcast writes one vector to all. "
    "Last panel: share of images and heads with a sink, by the group that the sink is in."
)
METRICS = ("attention_sink",)

HEADS = {"mass": "largest attention", "nop": "NOP", "broadcast": "broadcast", "other": "other sink"}
GROUPS = {"sink": "sinks by group"}


def frame(analysis: Analysis, parts: str | Sequence[str] = (*HEADS, *GROUPS)) -> pd.DataFrame:
    """Return the shares per block and head, and ``sink`` per block and group, mean over heads.

    The interval of the latter holds the lowest and the highest head.

    Args:
        parts: any of ``mass``, ``nop``, ``broadcast``, ``other`` and ``sink``.

    Raises:
        NothingToDraw: if attention_sink was not computed, which is opt-in, or does not apply.
    """
    rows = rows_of(analysis, "attention_sink", parts=as_list(parts))
    keys = ["model", "metric", "part", "group", "site", "block"]
    sinks = rows["part"].isin(GROUPS)
    found = pd.concat([rows[~sinks], *([with_bands(rows[sinks], keys)] if sinks.any() else [])])
    return found[[*keys, "head", *NUMBERS]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a heat map of block × head per part, with one colour scale, and lines over blocks for the groups."""
    parts = [part for part in (HEADS | GROUPS) if (frame["part"] == part).any()]
    columns = min(3 if paper().narrow else 5, len(parts))
    rows, blocks = -(-len(parts) // columns), frame["block"].nunique()
    if ax is None:
        page = canvas(None, rows, columns, 24 + rows * (17 + 1.9 * min(max(blocks, 8), 24)))
    else:
        page, rows, columns = canvas(ax, 1, len(parts), 0), 1, len(parts)
    remove_unused(page.axes, len(parts))
    image: AxesImage | None = None
    maps = []
    for index, (panel, part) in enumerate(zip(page.axes.flat, parts, strict=False)):
        inside = frame[frame["part"] == part]
        page.title(panel, (HEADS | GROUPS)[part])
        if part in GROUPS:
            group_lines(panel, inside)
            depth_axis(panel, inside["block"], room=8)
            panel.set_ylim(0, 1)
            panel.set_ylabel("share of images")
            panel.grid(axis="y")
            continue
        matrix = inside.pivot(index="block", columns="head", values="value")
        image = heat_map(panel, matrix.to_numpy(dtype=float), 0.0, 1.0)
        maps.append(panel)
        panel.set_xticks(integer_ticks(matrix.shape[1], 5))
        block_ticks(panel, matrix.index, 13)
        panel.tick_params(length=2, left=index % columns == 0, labelleft=index % columns == 0)
        panel.set_xlabel("head")
        panel.set_ylabel("block" if index % columns == 0 else "")
    if image is not None:
        look = {"location": "bottom", "aspect": 30, "fraction": 0.04, "shrink": 0.6}
        colour_bar(page.figure, image, maps, "attention, or share of images", **look)
    if "sink" in parts:
        page.legend(group_handles(frame.loc[frame["part"] == "sink", "group"]))
    page.header(frame, "sinks by group: mean over heads; band: lowest to highest head" if "sink" in parts else "")
    return page.figure
