"""Which channels belong to CLS and which to patches, block by block, before and after each norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tokenlens.figures._panels import colour_bar, heat_map, whole_ticks
from tokenlens.figures._rows import array_of, count_of, listed, norm_title, place_of, title_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "Channels of CLS and channels of patches"
ORDER = 40
CAPTION = (
    "Each column is a channel, each row a block. Red: the channel is larger in CLS; blue: larger in patches; s = "
    "±0.5 is three times the other's magnitude. Channels are in the same order in all panels (mean s at the first "
    "panel's output). A tint of a whole row is a difference in scale: of the tokens themselves at the input, and of "
    "what is left for most channels once the norm has divided each token by its σ, which a few huge channels can "
    "dominate."
)
METRICS = ("dimension_selectivity",)

MOST_COLUMNS = 1024
"""More channels than this are drawn as means of neighbours, so that a figure stays small."""


def frame(analysis: Analysis, norms: str | Sequence[str] = ("norm1", "norm2")) -> pd.DataFrame:
    """Selectivity s of each channel at the input and output of each norm.

    Args:
        analysis: where the numbers come from.
        norms: which norms; ``final_norm`` is possible, too.

    Raises:
        NothingToDraw: if dimension_selectivity was not computed or does not apply.
    """
    frames: list[pd.DataFrame] = []
    norms = listed(norms)
    for norm in norms:
        for side in ("input", "output"):
            try:
                s_LD = np.atleast_2d(array_of(analysis, "dimension_selectivity", f"{side}_{norm}"))
            except NothingToDraw:
                if norm == norms[-1] and not frames:
                    raise
                continue
            blocks, channels = s_LD.shape
            frames.append(
                pd.DataFrame(
                    {
                        "norm": norm,
                        "side": side,
                        "block": np.repeat(np.arange(blocks), channels) + (norm == "final_norm") * analysis.blocks,
                        "channel": np.tile(np.arange(channels), blocks),
                        "selectivity": s_LD.ravel(),
                    }
                )
            )
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "model", title_of(analysis))
    found["place"] = place_of(analysis)
    found["n"] = count_of(analysis, "dimension_selectivity")
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row of heat maps for each norm, input on the left and output on the right.

    Args:
        frame: of ``frame``.
        ax: two Axes for each norm; a new figure by default.
    """
    norms = list(dict.fromkeys(frame["norm"]))
    blocks = frame["block"].nunique()
    page = canvas(ax, len(norms), 2, 22 + len(norms) * (14 + 1.6 * min(max(blocks, 10), 30)), sharex=True, sharey="row")
    first = frame[(frame["norm"] == norms[0]) & (frame["side"] == "output")]
    order = first.groupby("channel")["selectivity"].mean().sort_values(kind="stable").index
    image = None
    width = -(-len(order) // MOST_COLUMNS)
    for row, norm in enumerate(norms):
        for column, side in enumerate(("input", "output")):
            panel = page.axes[row, column]
            inside = frame[(frame["norm"] == norm) & (frame["side"] == side)]
            matrix = inside.pivot(index="block", columns="channel", values="selectivity")[order]
            values = matrix.to_numpy(dtype=float)
            bins = np.arange(0, len(order), width)
            values = np.add.reduceat(values, bins, axis=1) / np.diff(np.append(bins, len(order)))
            image = heat_map(panel, values, -1, 1, diverging=True, levels=20)
            page.title(panel, f"{norm_title(frame)(norm)}, {side}", 0.4)
            ticks = whole_ticks(len(matrix))
            panel.set_yticks(ticks, [str(matrix.index[tick]) for tick in ticks])
            panel.set_xticks([])
            panel.tick_params(axis="y", which="both", left=column == 0, length=2)
            if row == len(norms) - 1:
                together = f", means of {width} neighbours" if width > 1 else ""
                text = f"{len(order)} channels, patches' ← sorted → CLS's{together}"
                panel.set_xlabel(wrapped(text, characters(0.4 * paper().width)))
        page.axes[row, 0].set_ylabel("block")
    assert image is not None
    colour_bar(page.figure, image, list(page.axes.flat), "selectivity s", ticks=[-1, -0.5, 0, 0.5, 1])
    page.header(frame, "mean magnitudes over images and, for patches, places")
    return page.figure
