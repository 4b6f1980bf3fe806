"""Mean attention map of CLS in each block, or in each head of one block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import colour_bar, heat_map, remove_unused
from tokenlens.figures._rows import array_of, count_of
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.figures.page import canvas, paper, styled

KIND = "analysis"
TITLE = "Mean attention map of CLS"
ORDER = 70
GROUP = "Attention"
CAPTION = (
    "Attention of CLS to each patch, averaged over heads and images and divided by its mean over patches, so that "
    "uniform attention is 1. An average over many images shows positions that the model prefers, such as the centre "
    "or a border, rather than the content of an image. All maps share one colour scale."
)
METRICS = ("cls_attention_map",)


def frame(analysis: Analysis, block: int | None = None) -> pd.DataFrame:
    """Return attention per position, in units of uniform attention.

    Args:
        block: return the heads of this block instead of all blocks averaged over heads.

    Raises:
        NothingToDraw: if cls_attention_map was not computed, does not apply, or has no such block.
    """
    maps_LHhw = array_of(analysis, "cls_attention_map", "mean")
    blocks, heads, rows, columns = maps_LHhw.shape
    if block is not None and not 0 <= block < blocks:
        raise NothingToDraw(f"{analysis.model} has blocks 0 to {blocks - 1}, got {block}")
    maps_Nhw = maps_LHhw.mean(1) if block is None else maps_LHhw[block]
    maps_Nhw = maps_Nhw / maps_Nhw.mean((1, 2), keepdims=True)
    count = len(maps_Nhw)
    index = np.indices(maps_Nhw.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "model": model_title(analysis),
            "block": index[0] if block is None else block,
            "head": pd.array([pd.NA] * index.shape[1] if block is None else index[0], dtype="Int64"),
            "map": np.repeat([f"{'block' if block is None else 'head'} {i}" for i in range(count)], rows * columns),
            "row": index[1],
            "column": index[2],
            "value": maps_Nhw.ravel(),
            "heads": heads,
            "n": count_of(analysis, "cls_attention_map"),
            "unit": "× uniform",
        }
    )


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw one map per block or head, on a common colour scale."""
    names = list(dict.fromkeys(frame["map"]))
    height, width = int(frame["row"].max()) + 1, int(frame["column"].max()) + 1
    sheet = paper()
    choice = (4, 5, 6) if sheet.narrow else (6, 8, 10, 12)
    columns = next(c for c in choice if len(names) <= (4 if sheet.narrow else 3) * c or c == choice[-1])
    columns = min(columns, max(len(names), 3)) if ax is None else len(names)
    rows = -(-len(names) // columns)
    map_width = (0.85 * sheet.width) / columns
    page = canvas(ax, rows, columns, max(32, 8 + rows * (map_width * min(height / width, 3) + 3.5)))
    remove_unused(page.axes, len(names))
    high = max(float(np.quantile(frame["value"], 0.995)), 1.5)
    clipped = bool((frame["value"] > high * 1.0001).any())
    image = None
    for panel, name in zip(page.axes.flat, names, strict=False):
        inside = frame[frame["map"] == name]
        values = inside.pivot(index="row", columns="column", values="value").to_numpy(dtype=float)
        image = heat_map(panel, values, 0, high)
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize="small", fontweight="normal", pad=2)
    assert image is not None
    drawn = list(page.axes.flat[: len(names)])
    colour_bar(page.figure, image, drawn, "attention (× uniform)", extend="max" if clipped else "neither")
    averaged = frame["head"].isna().all()
    over = f"of {int(frame['heads'].iloc[0])} heads and" if averaged else f"of block {frame['block'].iloc[0]},"
    what = f"mean {over} of images" if averaged else f"heads {over} mean of images"
    peak = f"; largest {frame['value'].max():.1f}" if clipped else ""
    page.header(frame, f"{what}{peak}")
    return page.figure
