"""Weights γ and β of specialized norms for CLS and for patches, and their difference by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._channels import average_neighbours, channel_rows, channels_text
from tokenlens.figures._panels import colour_bar, group_handles, heat_map, integer_ticks, line_look, write_inside
from tokenlens.figures._rows import array_of, as_list, norm_position, rows_of
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import COLOURS, MARKERS

KIND = "analysis"
TITLE = "γ and β for CLS and for patches"
ORDER = 24
GROUP = "Norms"
CAPTION = (
    "Weights of the specialized norms; no images are involved. Left: γ and β applied to CLS and to the patches in "
    "each block, median and 5th to 95th percentile over channels. Right: difference between CLS and patches in each "
    "channel (columns, in the same order in all panels, by mean difference in the first): red is larger for CLS, "
    "blue for patches. Blocks in which the norm is not specialized are white."
)
METRICS = ("norm_differentiation",)

SYMBOLS = {"gamma": "γ", "beta": "β"}
SIDES = ("cls", "patch")


def frame(
    analysis: Analysis,
    norms: str | Sequence[str] = ("norm1", "norm2", "final_norm"),
    parameters: str | Sequence[str] = tuple(SYMBOLS),
) -> pd.DataFrame:
    """Return γ and β for CLS and patches, and their difference, per norm, block and channel.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.
        parameters: one or both of ``gamma`` and ``beta``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, or no such norm is specialized.
    """
    rows_of(analysis, "norm_differentiation")
    frames = []
    for parameter in as_list(parameters):
        for norm in as_list(norms):
            if f"norm_differentiation/cls_{parameter}_{norm}" not in analysis.arrays:
                continue
            cls, patch = (array_of(analysis, "norm_differentiation", f"{side}_{parameter}_{norm}") for side in SIDES)
            keys, values = {"norm": norm, "parameter": parameter}, {"cls": cls, "patch": patch}
            frames.append(channel_rows(analysis, keys, {**values, "difference": cls - patch}))
    if not frames:
        raise NothingToDraw(f"{analysis.model} has no specialized norm among {', '.join(as_list(norms))}")
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "model", model_title(analysis))
    found["norm_position"] = norm_position(analysis)
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row per norm and parameter: the values on the left and their difference on the right."""
    rows = list(dict.fromkeys(zip(frame["norm"], frame["parameter"], strict=True)))
    heights = [9.0 if norm == "final_norm" else 15 + 1.2 * min(frame["block"].nunique(), 30) for norm, _ in rows]
    page = canvas(
        ax, len(rows), 2, 22 + sum(heights) + 5 * len(rows), sharey="row", height_ratios=heights, width_ratios=[1, 1.6]
    )
    order = _matrix(frame, *rows[0], "difference").mean(0).argsort(kind="stable")
    limits = {str(name): _limit(of["difference"].to_numpy()) for name, of in frame.groupby("parameter")}
    images: dict[str, Any] = {}
    for (sides, differences), (norm, parameter) in zip(page.axes, rows, strict=True):
        both = {side: _matrix(frame, norm, parameter, side) for side in SIDES}
        for side in reversed(SIDES):
            _profile(sides, both[side], side)
        difference = (both["cls"] - both["patch"])[:, order]
        limit = limits[parameter]
        image = heat_map(differences, average_neighbours(difference), -limit, limit, diverging=True, levels=21)
        if not difference.any():
            write_inside(differences, "weights are equal")
        else:
            images[parameter] = image
        _block_axis(sides, differences, len(difference), norm)
        name = "final" if norm == "final_norm" else norm
        page.title(sides, f"{name}: {SYMBOLS[parameter]}", 0.36)
        page.title(differences, f"{SYMBOLS[parameter]} for CLS − {SYMBOLS[parameter]} for patches", 0.5)
    page.axes[-1, 1].set_xlabel(wrapped(channels_text(len(order)), characters(0.45 * paper().width)))
    for parameter, image in images.items():
        panels = [panel for panel, (_, name) in zip(page.axes[:, 1], rows, strict=True) if name == parameter]
        ticks = limits[parameter] * np.array([-1, -0.5, 0, 0.5, 1])
        colour_bar(page.figure, image, panels, f"difference of {SYMBOLS[parameter]}", extend="both", ticks=ticks)
    page.legend(group_handles(SIDES))
    equal = "not trained since specialization: weights are equal"
    page.header(frame, "median and 5–95 % of channels" if frame["difference"].any() else equal)
    return page.figure


def _matrix(frame: pd.DataFrame, norm: str, parameter: str, value: str) -> NDArray[np.float64]:
    """Return one column of the frame as an array (blocks, channels)."""
    inside = frame[(frame["norm"] == norm) & (frame["parameter"] == parameter)]
    return inside.pivot(index="block", columns="channel", values=value).to_numpy(dtype=np.float64)


def _profile(panel: Axes, values_LD: NDArray[np.float64], side: str) -> None:
    """Draw the parameter of one token group over blocks, from top to bottom."""
    low, middle, high = np.quantile(values_LD, [0.05, 0.5, 0.95], axis=1)
    y = np.arange(len(values_LD), dtype=float)
    look = line_look(COLOURS[side], MARKERS[side])
    if len(y) == 1:
        y += 0.18 if side == "patch" else -0.18
        panel.hlines(y, low, high, color=COLOURS[side], linewidth=1.0)
    else:
        panel.fill_betweenx(y, low, high, color=COLOURS[side], alpha=0.2, linewidth=0, zorder=2)
    # The lines nearly coincide early in training, so a thin one is drawn on a thick one.
    width = 0.9 if side == "cls" else 2.4
    panel.plot(middle, y, zorder=4, markevery=1 + len(y) // 27, linewidth=width, **look)
    panel.xaxis.set_major_locator(MaxNLocator(3))
    panel.grid(axis="x")


def _block_axis(sides: Axes, differences: Axes, blocks: int, norm: str) -> None:
    """Set up the block axis of both panels, with block 0 at the top."""
    ticks = integer_ticks(blocks, room=6)
    sides.set_yticks([] if norm == "final_norm" else ticks)
    differences.set_ylim(blocks - 0.5, -0.5)
    differences.set_xticks([])
    differences.tick_params(axis="y", left=False)
    sides.set_ylabel("" if norm == "final_norm" else "block")


def _limit(differences: NDArray[np.float64]) -> float:
    """Return the limit of the colour scale: the 99.5th percentile of absolute differences, to two digits."""
    limit = float(np.quantile(np.abs(differences), 0.995)) or float(np.abs(differences).max())
    return float(f"{limit:.1e}") if limit > 0 else 1.0
