"""Similarity (CKA) of CLS features and mean-patch features between blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import colour_bar, depth_axis, depth_line, heat_map, integer_ticks
from tokenlens.figures._rows import array_of, count_of
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import COLOURS, MARKERS

KIND = "analysis"
TITLE = "Similarity of features between blocks"
ORDER = 120
GROUP = "Similarity"
CAPTION = (
    "Debiased linear CKA between the outputs of blocks: 1 if two sets of features arrange the images in the same "
    "way, about 0 if they are unrelated. The last panel is the diagonal of the third, with its interval: the "
    "similarity of CLS and mean patch within one block."
)
METRICS = ("cka",)

PAIRS = {"cls-cls": ("CLS", "CLS"), "patch-patch": ("mean patch", "mean patch"), "cls-patch": ("CLS", "mean patch")}


def frame(analysis: Analysis) -> pd.DataFrame:
    """Return CKA per pair of feature sets and pair of blocks; NaN if a feature set does not vary over images.

    Raises:
        NothingToDraw: if cka was not computed, does not apply, or has too few images to be defined.
    """
    frames = []
    for pair in PAIRS:
        value, low, high = (array_of(analysis, "cka", pair + suffix) for suffix in ("", "_low", "_high"))
        first, second = np.indices(value.shape).reshape(2, -1)
        frames.append(
            pd.DataFrame(
                {
                    "model": model_title(analysis),
                    "pair": pair,
                    "block_1": first,
                    "block_2": second,
                    "value": value.ravel(),
                    "ci_low": low.ravel(),
                    "ci_high": high.ravel(),
                }
            )
        )
    found = pd.concat(frames, ignore_index=True)
    if found["value"].isna().all():
        raise NothingToDraw(f"cka of {analysis.model} is not defined: it needs four images that differ")
    found["n"], found["unit"] = count_of(analysis, "cka"), "CKA"
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a matrix per pair of feature sets, and the diagonal of CLS against mean patch."""
    if paper().narrow and ax is None:
        page = canvas(None, 2, 2, 90)
    else:
        page = canvas(ax, 1, 4, 58, width_ratios=[1, 1, 1, 1.15])
    blocks = list(map(int, sorted(frame["block_1"].unique())))
    ticks = integer_ticks(len(blocks), 6)
    shown = [str(blocks[tick]) for tick in ticks]
    image = None
    for column, (pair, (first, second)) in enumerate(PAIRS.items()):
        panel = page.axes.flat[column]
        inside = frame[frame["pair"] == pair]
        matrix = inside.pivot(index="block_1", columns="block_2", values="value").to_numpy(dtype=float)
        image = heat_map(panel, matrix, 0, 1)
        panel.set_aspect("equal")
        page.title(panel, first if first == second else f"{first}, {second}", 0.35 if page.axes.shape[1] == 2 else 0.2)
        panel.set_xticks(ticks, shown)
        panel.set_yticks(ticks, shown)
        panel.tick_params(length=2)
        panel.set_xlabel(f"block ({second})")
        panel.set_ylabel(f"block ({first})")
    assert image is not None
    colour_bar(page.figure, image, list(page.axes.flat[:3]), "CKA", orientation="horizontal", aspect=40, shrink=0.5)
    panel = page.axes.flat[3]
    diagonal = frame[(frame["pair"] == "cls-patch") & (frame["block_1"] == frame["block_2"])]
    depth_line(panel, diagonal.rename(columns={"block_1": "block"}), COLOURS["cls-patch"], MARKERS["cls-patch"])
    depth_axis(panel, diagonal["block_1"], room=13 if paper().narrow else 6)
    panel.set_ylim(min(0.0, float(np.nanmin(diagonal["ci_low"].fillna(0)))), 1.0)
    panel.grid(axis="y")
    panel.set_title("same block")
    panel.set_ylabel("CKA(CLS, mean patch)")
    page.header(frame, "band: 95 % interval (jackknife over images)")
    return page.figure
