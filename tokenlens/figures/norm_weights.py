"""γ and β of both sets of a specialized model's norms, and their difference channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tokenlens.figures._panels import colour_bar, handle, heat_map, line_look, whole_ticks
from tokenlens.figures._rows import GROUPS, array_of, listed, place_of, rows_of, title_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.channel_selectivity import MOST_COLUMNS
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import COLOURS, FAINT, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "γ and β of CLS and of the patches"
ORDER = 24
CAPTION = (
    "The weights of the specialized norms. Left: γ and β that CLS goes through and those that the patches go through, "
    "block by block from top to bottom: the median over channels, and from the 5th to the 95th percentile. Right: "
    "CLS's less the patches', channel by channel (columns; in the same order everywhere, by the mean difference in "
    "the first panel): red is larger for CLS, blue for the patches. A block in which the norm has one set is white. "
    "Numbers of the weights alone: no image is behind them."
)
METRICS = ("norm_differentiation",)

SYMBOLS = {"gamma": "γ", "beta": "β"}
SIDES = ("cls", "patch")


def frame(
    analysis: Analysis,
    norms: str | Sequence[str] = ("norm1", "norm2", "final_norm"),
    parameters: str | Sequence[str] = tuple(SYMBOLS),
) -> pd.DataFrame:
    """Both sides' γ and β, and their difference, for each norm, block and channel.

    Args:
        analysis: where the numbers come from.
        norms: only these of ``norm1``, ``norm2`` and ``final_norm``.
        parameters: only these of ``gamma`` and ``beta``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, or no such norm is specialized.
    """
    rows_of(analysis, "norm_differentiation")
    frames = []
    for parameter in listed(parameters):
        for norm in listed(norms):
            if f"norm_differentiation/cls_{parameter}_{norm}" not in analysis.arrays:
                continue
            cls_LD, patch_LD = (
                np.atleast_2d(array_of(analysis, "norm_differentiation", f"{side}_{parameter}_{norm}"))
                for side in SIDES
            )
            blocks, channels = cls_LD.shape
            frames.append(
                pd.DataFrame(
                    {
                        "norm": norm,
                        "parameter": parameter,
                        "block": np.repeat(np.arange(blocks), channels) + (norm == "final_norm") * analysis.blocks,
                        "channel": np.tile(np.arange(channels), blocks),
                        "cls": cls_LD.ravel(),
                        "patch": patch_LD.ravel(),
                        "difference": (cls_LD - patch_LD).ravel(),
                    }
                )
            )
    if not frames:
        raise NothingToDraw(f"{analysis.model} has no specialized norm among {', '.join(listed(norms))}")
    found = pd.concat(frames, ignore_index=True)
    found.insert(0, "model", title_of(analysis))
    found["place"] = place_of(analysis)
    return found


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row for each norm and parameter, both sides on the left and their difference on the right.

    Args:
        frame: of ``frame``.
        ax: two Axes for each norm and parameter; a new figure by default.
    """
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
        image = heat_map(differences, _narrowed(difference), -limit, limit, diverging=True, levels=21)
        if not difference.any():
            differences.text(
                0.5, 0.5, "both sets are equal", transform=differences.transAxes, ha="center", va="center", color=FAINT
            )
        else:
            images[parameter] = image
        _block_axis(sides, differences, len(difference), norm)
        name = "final" if norm == "final_norm" else norm
        page.title(sides, f"{name}: {SYMBOLS[parameter]} of each side", 0.36)
        page.title(differences, f"{SYMBOLS[parameter]} of CLS − {SYMBOLS[parameter]} of the patches", 0.5)
    page.axes[-1, 1].set_xlabel(wrapped(_channels_text(len(order)), characters(0.45 * paper().width)))
    for parameter, image in images.items():
        panels = [panel for panel, (_, name) in zip(page.axes[:, 1], rows, strict=True) if name == parameter]
        ticks = limits[parameter] * np.array([-1, -0.5, 0, 0.5, 1])
        colour_bar(page.figure, image, panels, f"difference of {SYMBOLS[parameter]}", extend="both", ticks=ticks)
    page.legend([handle(GROUPS[side], COLOURS[side], MARKERS[side]) for side in SIDES])
    equal = not frame["difference"].any()
    page.header(frame, "freshly specialized: both sets are equal" if equal else "median and 5–95 % of the channels")
    return page.figure


def _matrix(frame: pd.DataFrame, norm: str, parameter: str, value: str) -> NDArray[np.float64]:
    """(blocks, channels) of one column."""
    inside = frame[(frame["norm"] == norm) & (frame["parameter"] == parameter)]
    return inside.pivot(index="block", columns="channel", values=value).to_numpy(dtype=np.float64)


def _profile(panel: Axes, values_LD: NDArray[np.float64], side: str) -> None:
    """One side's parameter over blocks, from top to bottom."""
    low, middle, high = np.quantile(values_LD, [0.05, 0.5, 0.95], axis=1)
    y = np.arange(len(values_LD), dtype=float)
    look = line_look(COLOURS[side], MARKERS[side])
    if len(y) == 1:
        y += 0.18 if side == "patch" else -0.18
        panel.hlines(y, low, high, color=COLOURS[side], linewidth=1.0)
    else:
        panel.fill_betweenx(y, low, high, color=COLOURS[side], alpha=0.2, linewidth=0, zorder=2)
    # Little apart at first: CLS's thin line lies on the patches' thick one.
    width = 0.9 if side == "cls" else 2.4
    panel.plot(middle, y, zorder=4, markevery=1 + len(y) // 27, linewidth=width, **look)
    panel.xaxis.set_major_locator(MaxNLocator(3))
    panel.grid(axis="x")


def _block_axis(sides: Axes, differences: Axes, blocks: int, norm: str) -> None:
    """Block 0 on top, in both panels."""
    ticks = whole_ticks(blocks, room=6)
    sides.set_yticks([] if norm == "final_norm" else ticks)
    differences.set_ylim(blocks - 0.5, -0.5)
    differences.set_xticks([])
    differences.tick_params(axis="y", left=False)
    sides.set_ylabel("" if norm == "final_norm" else "block")


def _limit(differences: NDArray[np.float64]) -> float:
    """Where the colours end: one channel in two hundred is further apart; to two digits."""
    limit = float(np.quantile(np.abs(differences), 0.995)) or float(np.abs(differences).max())
    return float(f"{limit:.1e}") if limit > 0 else 1.0


def _narrowed(values_LD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of neighbouring channels where there are more than fit."""
    channels = values_LD.shape[1]
    bins = np.arange(0, channels, -(-channels // MOST_COLUMNS))
    return np.add.reduceat(values_LD, bins, axis=1) / np.diff(np.append(bins, channels))


def _channels_text(channels: int) -> str:
    width = -(-channels // MOST_COLUMNS)
    return f"{channels} channels, sorted" + (f", means of {width} neighbours" if width > 1 else "")
