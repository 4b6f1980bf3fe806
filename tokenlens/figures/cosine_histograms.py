"""Histograms of the CLS–patch and patch–patch cosines before and after norm1, block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.photographs import BINS
from tokenlens.figures._panels import integer_ticks, legend_handle
from tokenlens.figures._photographs import maps_of
from tokenlens.figures.base import group_title, model_title, sort_groups
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import COLOURS

KIND = "analysis"
TITLE = "Distribution of the cosines before and after norm1"
ORDER = 12
GROUP = "Cosines"
CAPTION = (
    "One row per block: how the cosines of CLS with each patch (left) and of the patches of an image with each other "
    "(right) are distributed before norm1 (dashed) and after it (filled), in the first images of the analysis. All "
    "rows of a panel have one scale. A mean hides whether all patches move or some; the rows show it."
)
METRICS = ("cls_patch_cosine", "patch_patch_cosine")

OVERLAP = 1.7
"""Height of the highest histogram in rows."""


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return the share of cosines in each bin, per pair of groups, block and side of norm1.

    Raises:
        NothingToDraw: if the analysis kept no maps of its first images.
    """
    kept = maps_of(analysis, "the cosine of each patch")
    edges = np.linspace(-1, 1, BINS + 1)
    rows = []
    for side, state in enumerate(("before", "after")):
        for place, block in enumerate(kept.blocks):
            cosines = kept.cosines[:, side, place].astype(float).clip(-1, 1)
            of_cls, _ = np.histogram(cosines, edges)
            for group, counts in (("cls-patch", of_cls), ("patch-patch", kept.pairs[side, place])):
                shares = counts / max(int(counts.sum()), 1)
                used = np.flatnonzero(shares)
                inside = slice(max(used[0] - 1, 0), used[-1] + 2) if len(used) else slice(0, 0)
                keys = {"model": model_title(analysis), "group": group, "block": block, "state": state}
                numbers = {"cosine": (edges[:-1] + edges[1:])[inside].round(4) / 2, "share": shares[inside]}
                rows.append(pd.DataFrame({**keys, **numbers, "n": len(kept.names)}))
    return pd.concat(rows, ignore_index=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel per pair of groups, with block 0 on top."""
    groups, blocks = sort_groups(frame["group"]), sorted(frame["block"].unique())
    page = canvas(ax, 1, len(groups), 32 + 4.6 * min(len(blocks) + 1, 26), sharey=True, sharex=True)
    for panel, group in zip(page.axes[0], groups, strict=True):
        inside = frame[frame["group"] == group]
        height = OVERLAP / max(float(inside["share"].max()), 1e-9)
        for row, block in enumerate(blocks):
            of_block = inside[inside["block"] == block]
            _ridge(panel, of_block[of_block["state"] == "before"], row, height, COLOURS[group], hollow=True)
            _ridge(panel, of_block[of_block["state"] == "after"], row, height, COLOURS[group], hollow=False)
        panel.set_ylim(len(blocks) - 0.6, -OVERLAP - 0.1)
        panel.axvline(0, color=COLOURS[group], linewidth=0.5, zorder=0)
        panel.set_xlabel("cosine")
        panel.grid(axis="x")
        page.title(panel, group_title(group))
    ticks = integer_ticks(len(blocks), 13)
    page.axes[0, 0].set_yticks(ticks, [str(blocks[tick]) for tick in ticks])
    page.axes[0, 0].set_ylabel("block")
    page.legend(
        [
            legend_handle(f"{group_title(group)}, {state} norm1", COLOURS[group], "", state == "before")
            for group in groups
            for state in ("before", "after")
        ]
    )
    page.header(frame, "share of cosines in bins of 0.025")
    return page.figure


def _ridge(panel: Axes, rows: pd.DataFrame, row: int, height: float, colour: str, *, hollow: bool) -> None:
    """Draw one histogram upwards from its row."""
    x, y = rows["cosine"].to_numpy(), row - height * rows["share"].to_numpy()
    if not hollow:
        panel.fill_between(x, row, y, color=colour, alpha=0.35, linewidth=0, zorder=2 + row)
    dashes: Any = (0, (3.2, 1.6)) if hollow else "-"
    panel.plot(x, y, color=colour, linewidth=0.8, linestyle=dashes, zorder=2.5 + row)
