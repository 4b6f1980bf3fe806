"""Histograms of the norms of single patches, block by block, with high-norm patches marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import integer_ticks, legend_handle
from tokenlens.figures._patch_norms import MARKED, PATCHES, patch_norms
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import plain_number

KIND = "analysis"
TITLE = "Distribution of the patch norms"
ORDER = 92
GROUP = "Length"
CAPTION = (
    "One row per block: how the norms ‖x‖ of single patches are distributed at the block's input, in the first images "
    "of the analysis; logarithmic, one scale for all rows. Below a row: norms of high-norm patches (above three times "
    "the median of their image) and of outliers (above median + 4·1.4826·MAD)."
)
METRICS = ("token_norm",)

WIDTH = 0.04
"""Width of a bin in decades: 10 % of the norm."""

OVERLAP = 1.6
"""Height of the highest histogram in rows."""


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return per block and bin of the norm the share of patches, and of those that each rule marks.

    Raises:
        NothingToDraw: if the analysis kept no maps of its first images.
    """
    norms = patch_norms(analysis)
    bins = np.floor(np.log10(norms["before"].clip(lower=1e-12)) / WIDTH).astype(int)
    counted = norms.assign(bin=bins, share=1).groupby(["model", "block", "bin"], as_index=False)
    found = counted[["share", *MARKED]].sum()
    per_block = found.groupby("block")["share"].transform("sum")
    for column in ("share", *MARKED):
        found[column] = found[column] / per_block
    found.insert(2, "low", 10 ** (found["bin"] * WIDTH))
    found.insert(3, "high", 10 ** ((found["bin"] + 1) * WIDTH))
    return found.assign(n=norms["n"].iloc[0])


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw one panel with block 0 on top."""
    blocks = sorted(frame["block"].unique())
    page = canvas(ax, 1, 1, 30 + 5.2 * min(len(blocks) + 1, 26))
    panel = page.axes[0, 0]
    panel.set_xscale("log")
    height = OVERLAP / max(float(frame["share"].max()), 1e-9)
    for row, block in enumerate(blocks):
        of_block = frame[frame["block"] == block]
        x, shares = _steps(of_block)
        panel.fill_between(x, row, row - height * shares, color=PATCHES, alpha=0.35, linewidth=0, zorder=2 + row)
        panel.plot(x, row - height * shares, color=PATCHES, linewidth=0.7, zorder=2.5 + row)
        for column, (_, colour, marker) in MARKED.items():
            marked = of_block[of_block[column] > 0]
            middle = np.sqrt(marked["low"] * marked["high"])
            below = np.full(len(middle), row + (0.14 if column == "outlier" else 0.32))
            look = {"color": colour, "markersize": 2.4, "markeredgewidth": 0.7}
            panel.plot(middle, below, marker, linestyle="none", zorder=90, **look)
    panel.set_ylim(len(blocks) - 0.4, -OVERLAP - 0.1)
    panel.set_xlabel("norm ‖x‖ of a patch")
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
    panel.xaxis.set_major_formatter(FuncFormatter(plain_number))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="x")
    ticks = integer_ticks(len(blocks), 13)
    panel.set_yticks(ticks, [str(blocks[tick]) for tick in ticks])
    panel.set_ylabel("block")
    page.legend([legend_handle("patches", PATCHES, "")] + [_marked(*look) for look in MARKED.values()], columns=3)
    page.header(frame, "share of patches in bins of ‖x‖ at the block's input")
    return page.figure


def _steps(rows: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and height of the steps of one histogram, from its first bin with patches to its last one."""
    bins = rows["bin"].to_numpy() - rows["bin"].min()
    heights = np.zeros(bins.max() + 1)
    heights[bins] = rows["share"]
    edges = 10 ** (WIDTH * (rows["bin"].min() + np.arange(len(heights) + 1)))
    return np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])


def _marked(label: str, colour: str, marker: str) -> Any:
    handle = legend_handle(label, colour, marker)
    handle.set_linestyle("none")
    return handle
