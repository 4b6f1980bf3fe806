"""Axes, lines and heat maps shared by figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from tokenlens.figures._rows import NORMS, norm_title
from tokenlens.figures.base import group_title, sort_groups
from tokenlens.figures.page import Canvas, canvas, paper
from tokenlens.figures.style import COLOURS, DIVERGING, FAINT, INK, MARKERS, PAPER, SEQUENTIAL, plain_number

INTERVALS = "bands and bars: 95 % interval of the mean over images"
JACKKNIFE = "bands and bars: 95 % interval (jackknife over images)"


def norm_columns(norms: Iterable[str]) -> tuple[list[str], list[float]]:
    """Return the norms in order, and the relative widths of their panels; the final norm is a single point."""
    order = [norm for norm in NORMS if norm in set(norms)]
    single = len(order) == 1
    little = 0.24 if paper().narrow else 0.13
    return order, [little if norm == "final_norm" and not single else 1.0 for norm in order]


def depth_axis(
    ax: Axes, blocks: NDArray[Any] | pd.Series, final: bool = False, label: bool = True, room: float = 12.5
) -> None:
    """Set up a block axis: integer ticks, with half a block of space on both sides.

    It has at most about ``room`` ticks in a figure of double width, and half as many in a narrow one.
    """
    room = room / 2 if paper().narrow else room
    present = np.unique(np.asarray(pd.Series(blocks).dropna(), dtype=int))
    if not len(present):
        return
    low, high = int(present[0]), int(present[-1])
    ax.set_xlim(low - 0.5, high + 0.5)
    step = next(s for s in (1, 2, 4, 5, 10, 20, 50, 100) if (high - low) / s <= room or s == 100)
    ticks = np.arange(low, high + 1, step)
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    if final:
        ax.set_xticks([low], ["norm"])
        ax.set_xlim(low - 0.9, high + 0.9)
    elif label:
        ax.set_xlabel("block")
    if not label:
        ax.tick_params(axis="x", bottom=False)


def log_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers and at least two labels, unless nothing is above 0."""
    if not any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in ax.get_lines()):
        return
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    decades = np.log10(high) - np.log10(low)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    ax.yaxis.set_minor_formatter(NullFormatter())


def zero_line(ax: Axes, at: float = 0.0) -> None:
    """Draw a thin horizontal line at zero or another value."""
    ax.axhline(at, color=INK, linewidth=0.6, zorder=1)


def depth_line(
    ax: Axes, rows: pd.DataFrame, colour: str, marker: str, *, hollow: bool = False, shift: float = 0.0
) -> None:
    """Draw a line over blocks with its interval, which is a band, or a bar if there is only one block.

    With ``hollow`` it is dashed with hollow markers, which marks the input of a module in all figures.
    """
    rows = rows.sort_values("block")
    x = rows["block"].to_numpy(dtype=float) + shift
    y, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "ci_low", "ci_high"))
    if len(x) == 1:
        if np.isfinite(low + high).all():
            ax.vlines(x, low, high, color=colour, linewidth=1.0, zorder=3)
    else:
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    ax.plot(x, y, zorder=4, markevery=1 + len(x) // 27, **line_look(colour, marker, hollow))


def line_look(colour: str, marker: str, hollow: bool = False) -> dict[str, Any]:
    """Return colour, dashes and marker of a line."""
    return {
        "color": colour,
        "linestyle": (0, (3.2, 1.6)) if hollow else "-",
        "marker": marker,
        "markerfacecolor": PAPER if hollow else colour,
        "markeredgecolor": colour,
    }


def legend_handle(label: str, colour: str, marker: str, hollow: bool = False) -> Line2D:
    """Return the legend entry for a line."""
    return Line2D([], [], label=label, **line_look(colour, marker, hollow))


def depth_panels(
    page: Canvas,
    frame: pd.DataFrame,
    rows: tuple[str, Sequence[str]] | None,
    columns: tuple[str, Sequence[str]],
    title: Callable[[str], str],
    widths: Sequence[float] | None = None,
) -> Iterator[tuple[Axes, str, str, pd.DataFrame]]:
    """Prepare panels over blocks: a row for each value of one column of the frame, a column for each value of another.

    Args:
        page: the panels.
        frame: one row per number, with the column ``block``.
        rows: a column of the frame and its values from top to bottom; None for a single row of panels.
        columns: a column of the frame and its values from left to right.
        title: returns the title of a column of panels for its value.
        widths: relative widths of the columns of panels; equal by default.

    Yields:
        The panel with axis, grid and title, its row's value (empty if there is a single row), its column's value, and
        the rows of the frame to draw.
    """
    by_column, across = columns
    by_row, down = rows or ("", [""])
    widths = [1.0] * len(across) if widths is None else widths
    for row, above in enumerate(down):
        for column, beside in enumerate(across):
            panel = page.axes[row, column]
            inside = frame[frame[by_column] == beside]
            depth_axis(
                panel,
                inside["block"],
                final=beside == "final_norm",
                label=row == len(down) - 1,
                room=26 / (1 + len(across)) if len(across) > 3 else 12.5,
            )
            panel.grid(axis="y")
            panel.tick_params(axis="y", which="both", left=column == 0)
            if row == 0:
                page.title(panel, title(beside), 0.86 * widths[column] / sum(widths))
            yield panel, above, beside, inside[inside[by_row] == above] if by_row else inside


def norm_panels(
    frame: pd.DataFrame, ax: Any, rows: tuple[str, Sequence[str]] | None, height_mm: tuple[float, float]
) -> tuple[Canvas, Iterator[tuple[Axes, str, str, pd.DataFrame]]]:
    """Return a canvas with a column of panels per norm, and its ``depth_panels``.

    Args:
        frame: one row per number, with the columns ``block``, ``norm`` and ``norm_position``.
        ax: as for ``canvas``.
        rows: as for ``depth_panels``.
        height_mm: height of the figure without panels, and of each row of panels.
    """
    norms, widths = norm_columns(frame["norm"])
    down = len(rows[1]) if rows else 1
    height = height_mm[0] + down * height_mm[1]
    page = canvas(ax, down, len(norms), height, sharex="col", sharey="row", width_ratios=widths)
    return page, depth_panels(page, frame, rows, ("norm", norms), norm_title(frame), widths)


def group_lines(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw a ``depth_line`` for each token group or pair of groups."""
    for group, line in rows.groupby("group", sort=False):
        depth_line(panel, line, COLOURS[str(group)], MARKERS[str(group)])


def group_handles(groups: Iterable[str]) -> list[Line2D]:
    """Return the legend entries of token groups or pairs of groups, without duplicates and in order."""
    return [legend_handle(group_title(group), COLOURS[group], MARKERS[group]) for group in sort_groups(groups)]


def draw_before_after(
    frame: pd.DataFrame, ax: Any, ylabel: str, *, zero: bool = True, log: bool = False, note: str = INTERVALS
) -> Figure:
    """Draw metrics over blocks before and after each norm, one panel per norm.

    ``frame`` has the columns of ``tokenlens.figures._rows.before_after``.
    """
    page, panels = norm_panels(frame, ax, None, (0, 72))
    groups = sort_groups(frame["group"])
    for panel, _, norm, inside in panels:
        for group in groups:
            for state in ("before", "after"):
                rows = inside[(inside["group"] == group) & (inside["state"] == state)]
                if len(rows):
                    aside = 0.0 if norm != "final_norm" else -0.35 if state == "before" else 0.35
                    depth_line(panel, rows, COLOURS[group], MARKERS[group], hollow=state == "before", shift=aside)
        if zero:
            zero_line(panel)
    if log:
        log_axis(page.axes[0, 0])
    page.axes[0, 0].set_ylabel(ylabel)
    page.level()
    page.legend(
        [
            legend_handle(f"{group_title(group)}, {state}", COLOURS[group], MARKERS[group], state == "before")
            for group in groups
            for state in ("before", "after")
        ]
    )
    page.header(frame, note if frame["ci_low"].notna().any() else "")
    return page.figure


def heat_map(
    ax: Axes, values: NDArray[np.float64], low: float, high: float, *, diverging: bool = False, levels: int = 0
) -> AxesImage:
    """Draw a matrix as an image of one pixel per value, row 0 on top; with ``levels`` the colours are discrete."""
    colours = matplotlib.colormaps[DIVERGING if diverging else SEQUENTIAL]
    norm: Normalize
    norm = BoundaryNorm(np.linspace(low, high, levels + 1), colours.N) if levels else Normalize(low, high)
    image = ax.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="none")
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def block_ticks(panel: Axes, blocks: pd.Index, room: int = 8) -> None:
    """Number the rows of a heat map by block."""
    ticks = integer_ticks(len(blocks), room)
    panel.set_yticks(ticks, [str(blocks[tick]) for tick in ticks])


def write_inside(panel: Axes, text: str, **options: Any) -> None:
    """Write text into the middle of a panel that has nothing else to show."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=FAINT, **options)


def remove_unused(axes: NDArray[Any], used: int) -> None:
    """Remove the panels after the first ``used``."""
    for panel in axes.flat[used:]:
        panel.remove()


def colour_bar(figure: Figure, image: ScalarMappable, axes: Any, label: str, **options: Any) -> None:
    """Add a colour bar labelled with its unit."""
    bar = figure.colorbar(image, ax=axes, **{"pad": 0.015, "aspect": 28, "fraction": 0.05, **options})
    if label:
        bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)


def integer_ticks(count: int, room: int = 8) -> list[int]:
    """Return integer ticks from 0 to count − 1, at most about ``room`` of them."""
    step = next(s for s in (1, 2, 4, 5, 10, 20, 50, 100, 200, 500, 1000) if count / s <= room or s == 1000)
    return list(range(0, count, step))
