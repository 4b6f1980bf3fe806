"""Norm of each patch before and after norm1, with high-norm patches outlined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import legend_handle, remove_unused
from tokenlens.figures._patch_norms import MARKED, PATCHES, patch_norms
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.overlays.selection import evenly_spaced

KIND = "analysis"
TITLE = "Norm of each patch before and after norm1"
ORDER = 94
GROUP = "Length"
CAPTION = (
    "Each dot is a patch of the first images of the analysis: its norm ‖x‖ in the residual stream before norm1, and "
    "after it. Outlined: high-norm patches (above three times the median of their image before the norm) and outliers "
    "(above median + 4·1.4826·MAD). A norm divides by the spread of each token, so how long a patch is after it "
    "depends on its direction and on γ and β, not on its length."
)
METRICS = ("token_norm",)

MOST_DOTS = 36
"""Dots of a kind in a panel; of more patches, as many at evenly spaced ranks of their norm are drawn."""


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return a row per block, image and patch: ``before`` and ``after``, ``high_norm`` and ``outlier``.

    Raises:
        NothingToDraw: if the analysis kept no maps of its first images.
    """
    return patch_norms(analysis)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel for each of at most six blocks."""
    blocks = evenly_spaced(sorted(frame["block"].unique()))
    columns = min(2 if paper().narrow and ax is None else 3, len(blocks))
    rows = -(-len(blocks) // columns) if ax is None else 1
    columns = columns if ax is None else len(blocks)
    page = canvas(ax, rows, columns, 22 + 40 * rows)
    remove_unused(page.axes, len(blocks))
    for index, block in enumerate(blocks):
        panel = page.axes.flat[index]
        of_block = frame[frame["block"] == block]
        marked = of_block["high_norm"] | of_block["outlier"]
        _dots(panel, of_block[~marked], ".", color=PATCHES, alpha=0.8, markersize=3.0, markeredgewidth=0)
        for column, (_, colour, _) in MARKED.items():
            size, inside = (4.6, "none") if column == "high_norm" else (2.8, PATCHES)
            look = {"markersize": size, "markerfacecolor": inside, "markeredgecolor": colour, "markeredgewidth": 0.7}
            _dots(panel, of_block[of_block[column]], "o", **look)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.grid()
        page.title(panel, f"block {block}")
        if index >= len(blocks) - columns:
            panel.set_xlabel("‖x‖ before norm1")
        if index % columns == 0:
            panel.set_ylabel("after norm1")
    outlined = [legend_handle(text, colour, "o", hollow=True) for text, colour, _ in MARKED.values()]
    handles = [legend_handle("patch", PATCHES, "."), *outlined]
    for handle in handles:
        handle.set_linestyle("none")
    page.legend(handles, columns=3)
    page.header(frame, f"at most {MOST_DOTS} dots of a kind in a panel, at evenly spaced ranks")
    return page.figure


def _dots(panel: Axes, rows: pd.DataFrame, marker: str, **look: Any) -> None:
    """Draw patches, or as many as ``MOST_DOTS`` of them at evenly spaced ranks of their norm."""
    rows = rows.sort_values("before")
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_DOTS)).round().astype(int))
    chosen = rows.iloc[places] if len(rows) else rows
    panel.plot(chosen["before"], chosen["after"], marker, linestyle="none", **look)
