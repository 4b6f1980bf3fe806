"""Weights γ and β of the norms by channel; of specialized norms, those for CLS and patches and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._channels import average_neighbours, channel_rows, channels_text
from tokenlens.figures._panels import colour_bar, group_handles, heat_map, integer_ticks, line_look, write_inside
from tokenlens.figures._rows import array_of, as_list, norm_position, rows_of
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import COLOURS, INK, MARKERS, plain_number

KIND = "analysis"
TITLE = "γ and β of the norms"
ORDER = 24
GROUP = "Norms"
CAPTION = (
    "Weights of the norms; no images are involved. Left: γ and β in each block, median and 5th to 95th percentile over "
    "channels. Right: each channel (columns, in the same order in all panels, by their mean in the first). Of "
    "specialized norms, left: those for CLS and for patches; right: their difference, red is larger for CLS, blue for "
    "patches. Blocks in which the norm is not specialized are white."
)
METRICS = ("norm_differentiation",)

SYMBOLS = {"gamma": "γ", "beta": "β"}
SIDES = ("cls", "patch")
QUANTILES = "median and 5–95 % of channels"


def frame(
    analysis: Analysis,
    norms: str | Sequence[str] = ("norm1", "norm2", "final_norm"),
    parameters: str | Sequence[str] = tuple(SYMBOLS),
) -> pd.DataFrame:
    """Return γ and β per norm, block and channel: ``value``, or ``cls``, ``patch`` and ``difference``.

    If a norm is specialized, only specialized norms are returned.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.
        parameters: one or both of ``gamma`` and ``beta``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, or its norms have no weights.
    """
    rows_of(analysis, "norm_differentiation")
    sets: dict[bool, list[pd.DataFrame]] = {True: [], False: []}
    for parameter in as_list(parameters):
        for norm in as_list(norms):
            keys, name = {"norm": norm, "parameter": parameter}, f"{parameter}_{norm}"
            if f"norm_differentiation/cls_{name}" in analysis.arrays:
                cls, patch = (array_of(analysis, "norm_differentiation", f"{side}_{name}") for side in SIDES)
                values = {"cls": cls, "patch": patch, "difference": cls - patch}
                sets[True].append(channel_rows(analysis, keys, values))
            elif f"norm_differentiation/{name}" in analysis.arrays:
                value = array_of(analysis, "norm_differentiation", name)
                sets[False].append(channel_rows(analysis, keys, {"value": value}))
    frames = sets[True] or sets[False]
    if not frames:
        raise NothingToDraw(f"{analysis.model} has no weights of a norm among {', '.join(as_list(norms))}")
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "model", model_title(analysis))
    found["norm_position"] = norm_position(analysis)
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row per norm and parameter: the values over blocks on the left, and by channel on the right."""
    rows = list(dict.fromkeys(zip(frame["norm"], frame["parameter"], strict=True)))
    heights = [9.0 if norm == "final_norm" else 15 + 1.2 * min(frame["block"].nunique(), 30) for norm, _ in rows]
    page = canvas(
        ax, len(rows), 2, 22 + sum(heights) + 5 * len(rows), sharey="row", height_ratios=heights, width_ratios=[1, 1.6]
    )
    separate = "difference" in frame
    column = "difference" if separate else "value"
    order = _matrix(frame, *rows[0], column).mean(0).argsort(kind="stable")
    limits = {str(name): _limit(of[column].to_numpy()) for name, of in frame.groupby("parameter")}
    low = {name: -limit if separate or _signed(frame, name) else 0.0 for name, limit in limits.items()}
    images: dict[str, Any] = {}
    for (profile, channels), (norm, parameter) in zip(page.axes, rows, strict=True):
        for side in reversed(SIDES) if separate else ["value"]:
            _profile(profile, _matrix(frame, norm, parameter, side), side)
        values_LD = _matrix(frame, norm, parameter, column)[:, order]
        scale, signed = (low[parameter], limits[parameter]), low[parameter] < 0
        image = heat_map(channels, average_neighbours(values_LD), *scale, diverging=signed, levels=21 if signed else 20)
        if separate and not values_LD.any():
            write_inside(channels, "weights are equal")
        else:
            images[parameter] = image
        _block_axis(profile, channels, len(values_LD), norm)
        name, symbol = "final" if norm == "final_norm" else norm, SYMBOLS[parameter]
        page.title(profile, f"{name}: {symbol}", 0.36)
        page.title(channels, f"{symbol} for CLS − {symbol} for patches" if separate else f"{symbol} by channel", 0.5)
    page.axes[-1, 1].set_xlabel(wrapped(channels_text(len(order)), characters(0.45 * paper().width)))
    for parameter, image in images.items():
        panels = [panel for panel, (_, name) in zip(page.axes[:, 1], rows, strict=True) if name == parameter]
        ticks = np.linspace(low[parameter], limits[parameter], 3 if low[parameter] == 0 else 5)
        label = ("difference of " if separate else "") + SYMBOLS[parameter]
        extend = "both" if low[parameter] < 0 else "max"
        colour_bar(page.figure, image, panels, label, extend=extend, ticks=ticks, format=FuncFormatter(plain_number))
    if separate:
        page.legend(group_handles(SIDES))
    equal = separate and not frame["difference"].any()
    page.header(frame, "not trained since specialization: weights are equal" if equal else QUANTILES)
    return page.figure


def _signed(frame: pd.DataFrame, parameter: str) -> bool:
    """Return whether more than single channels are below 0, so that the colours need both signs."""
    return bool((frame.loc[frame["parameter"] == parameter, "value"] < 0).mean() > 0.01)


def _matrix(frame: pd.DataFrame, norm: str, parameter: str, value: str) -> NDArray[np.float64]:
    """Return one column of the frame as an array (blocks, channels)."""
    inside = frame[(frame["norm"] == norm) & (frame["parameter"] == parameter)]
    return inside.pivot(index="block", columns="channel", values=value).to_numpy(dtype=np.float64)


def _profile(panel: Axes, values_LD: NDArray[np.float64], side: str) -> None:
    """Draw the parameter over blocks, from top to bottom, of one token group or of all."""
    low, middle, high = np.quantile(values_LD, [0.05, 0.5, 0.95], axis=1)
    y = np.arange(len(values_LD), dtype=float)
    colour, marker = (INK, "o") if side == "value" else (COLOURS[side], MARKERS[side])
    look = line_look(colour, marker)
    if len(y) == 1:
        y += {"patch": 0.18, "cls": -0.18}.get(side, 0.0)
        panel.hlines(y, low, high, color=colour, linewidth=1.0)
    else:
        panel.fill_betweenx(y, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    # The lines nearly coincide early in training, so a thin one is drawn on a thick one.
    width = 2.4 if side == "patch" else 0.9
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


def _limit(values: NDArray[np.float64]) -> float:
    """Return the limit of the colour scale: the 99.5th percentile of absolute values, to two digits."""
    limit = float(np.nanquantile(np.abs(values), 0.995)) or float(np.nanmax(np.abs(values)))
    return float(f"{limit:.1e}") if limit > 0 else 1.0
