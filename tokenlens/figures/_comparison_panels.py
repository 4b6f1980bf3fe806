"""Panels, lines and axes shared by the figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from tokenlens.figures._panels import depth_axis
from tokenlens.figures.page import Canvas, canvas, paper
from tokenlens.figures.style import model_colour, model_look


@dataclass(frozen=True)
class GridPanel:
    """A panel of a grid: its axes, the row and column values that it shows, and the edges that it lies on."""

    axes: Axes
    row: Any
    column: Any
    left: bool
    top: bool
    bottom: bool


def grid(
    ax: Any, rows: Sequence[Any], columns: Sequence[Any], most: int, height_mm: tuple[float, float], **subplots: Any
) -> tuple[Canvas, list[GridPanel]]:
    """Create a panel for each combination of a row and a column; columns that do not fit continue below.

    Args:
        ax: as for ``canvas``.
        rows: the values of the rows.
        columns: the values of the columns.
        most: largest number of panels side by side.
        height_mm: height of the figure without panels, and of each row of panels.
        **subplots: as for ``canvas``.
    """
    parts = 1 if ax is not None else -(-len(columns) // most)
    width = -(-len(columns) // parts)
    page = canvas(ax, parts * len(rows), width, height_mm[0] + parts * len(rows) * height_mm[1], **subplots)
    panels, used = [], set()
    for index, column in enumerate(columns):
        part, across = divmod(index, width)
        for down, row in enumerate(rows):
            axes = page.axes[part * len(rows) + down, across]
            used.add(axes)
            bottom = down == len(rows) - 1 and index + width >= len(columns)
            panels.append(GridPanel(axes, row, column, left=across == 0, top=down == 0, bottom=bottom))
    for axes in page.axes.flat:
        if axes not in used:
            axes.remove()
    return page, panels


def check_axis(axis: str) -> None:
    """Raise ValueError unless ``axis`` is ``"relative"`` or ``"block"``."""
    if axis not in ("relative", "block"):
        raise ValueError(f"axis must be 'relative' (depth from 0 to 1) or 'block', got {axis!r}")


def models_depth_axis(panel: Axes, rows: pd.DataFrame, axis: str, label: bool = True) -> None:
    """Set up the x axis for models of different depth: relative depth from 0 to 1, or block numbers."""
    if axis == "block":
        depth_axis(panel, rows["block"], label=label, room=7)
    else:
        low, high = float(rows["depth"].min()), float(rows["depth"].max())
        if high - low > 0.7:
            panel.set_xlim(0, 1)
            panel.set_xticks([0, 0.5, 1] if paper().narrow else [0, 0.25, 0.5, 0.75, 1])
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if label:
            panel.set_xlabel("relative depth")
    panel.tick_params(axis="x", bottom=label, labelbottom=label)
    panel.grid(axis="y")


def model_lines(panel: Axes, rows: pd.DataFrame, axis: str) -> None:
    """Draw a line with its band for each model, the first model on top."""
    for number in sorted(map(int, rows["model_number"].unique()), reverse=True):
        line = rows[rows["model_number"] == number].sort_values("block")
        columns = ("depth" if axis == "relative" else "block", "ci_low", "ci_high")
        x, low, high = (line[name].to_numpy(dtype=float) for name in columns)
        if len(line) == 1:
            panel.vlines(x, low, high, color=model_colour(number), linewidth=1.0, zorder=3)
        panel.fill_between(x, low, high, color=model_colour(number), alpha=0.18, linewidth=0, zorder=2)
        every = max(1, round(len(line) / (8 if paper().narrow else 12)))
        panel.plot(x, line["value"].to_numpy(dtype=float), zorder=4, markevery=every, **model_look(number))


def ink_on(colours: Colormap, share: float) -> str:
    """Return black or white, whichever is more legible on a colour of a map."""
    red, green, blue, _ = colours(share)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def small_marker() -> float:
    """Return the size of a marker in crowded panels, in points."""
    return 0.85 * float(matplotlib.rcParams["lines.markersize"])
