"""Channels in which CLS or the patches are larger, by block, before and after each norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._channels import average_neighbours, channel_rows, channels_text
from tokenlens.figures._panels import block_ticks, colour_bar, heat_map
from tokenlens.figures._rows import array_of, as_list, count_of, norm_position, norm_title
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped

KIND = "analysis"
TITLE = "Channels selective for CLS or for patches"
ORDER = 40
GROUP = "Norms"
CAPTION = (
    "Selectivity s of each channel (columns) in each block (rows). Red channels are larger in CLS, blue ones in "
    "patches; at s = ±0.5 one is three times the other. Channels have the same order in all panels, by mean s at the "
    "output of the first norm. A tint of a whole row is a difference in scale: at the input that of the tokens "
    "themselves; at the output it arises because the norm divides by σ, which a few huge channels can dominate."
)
METRICS = ("dimension_selectivity",)


def frame(analysis: Analysis, norms: str | Sequence[str] = ("norm1", "norm2")) -> pd.DataFrame:
    """Return the selectivity s of each channel at the input and output of each norm.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.

    Raises:
        NothingToDraw: if dimension_selectivity was not computed or does not apply.
    """
    frames: list[pd.DataFrame] = []
    norms = as_list(norms)
    for norm in norms:
        for side in ("input", "output"):
            try:
                s = array_of(analysis, "dimension_selectivity", f"{side}_{norm}")
            except NothingToDraw:
                if norm == norms[-1] and not frames:
                    raise
                continue
            frames.append(channel_rows(analysis, {"norm": norm, "side": side}, {"selectivity": s}))
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "model", model_title(analysis))
    found["norm_position"] = norm_position(analysis)
    found["n"] = count_of(analysis, "dimension_selectivity")
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row of heat maps per norm, with the input on the left and the output on the right."""
    norms = list(dict.fromkeys(frame["norm"]))
    blocks = frame["block"].nunique()
    page = canvas(ax, len(norms), 2, 22 + len(norms) * (14 + 1.6 * min(max(blocks, 10), 30)), sharex=True, sharey="row")
    first = frame[(frame["norm"] == norms[0]) & (frame["side"] == "output")]
    order = first.groupby("channel")["selectivity"].mean().sort_values(kind="stable").index
    image = None
    for row, norm in enumerate(norms):
        for column, side in enumerate(("input", "output")):
            panel = page.axes[row, column]
            inside = frame[(frame["norm"] == norm) & (frame["side"] == side)]
            matrix = inside.pivot(index="block", columns="channel", values="selectivity")[order]
            values = average_neighbours(matrix.to_numpy(dtype=float))
            image = heat_map(panel, values, -1, 1, diverging=True, levels=20)
            page.title(panel, f"{norm_title(frame)(norm)}, {side}", 0.4)
            block_ticks(panel, matrix.index)
            panel.set_xticks([])
            panel.tick_params(axis="y", which="both", left=column == 0, length=2)
            if row == len(norms) - 1:
                text = channels_text(len(order), " from patches to CLS")
                panel.set_xlabel(wrapped(text, characters(0.4 * paper().width)))
        page.axes[row, 0].set_ylabel("block")
    assert image is not None
    colour_bar(page.figure, image, list(page.axes.flat), "selectivity s", ticks=[-1, -0.5, 0, 0.5, 1])
    page.header(frame, "mean magnitudes over images and, for patches, positions")
    return page.figure
