"""Panels, axes and lines that figures share. Nothing here touches pyplot or matplotlib's global state."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from tokenlens.figures import COLOURS, DIVERGING, FAINT, INK, MARKERS, SEQUENTIAL, STYLE, WIDTH_MM
from tokenlens.figures._rows import NORMS, in_order, norm_title, pair_title
from tokenlens.figures._svg import svg_of

P = ParamSpec("P")
T = TypeVar("T")

INTERVALS = "bands and bars: 95 % interval of the mean over images"
JACKKNIFE = "bands and bars: 95 % interval (jackknife over images)"


class Drawing(Figure):
    """A matplotlib figure that shows itself in Jupyter without pyplot."""

    def _repr_svg_(self) -> str:
        return svg_of(self, "figure")


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Draw in the shared style, and leave matplotlib's settings as they were."""

    @functools.wraps(plot)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with style.context(["default", dict(STYLE)]):
            return plot(*args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class Canvas:
    """The panels of one figure, (rows, columns), on a figure of ours or on axes that the caller brought."""

    figure: Figure
    axes: NDArray[Any]
    own: bool

    def header(self, frame: pd.DataFrame, note: str = "") -> None:
        """Model, n and a note on top of the figure, wrapped to its width."""
        counts = frame["n"].dropna() if "n" in frame else pd.Series(dtype=int)
        n = ""
        if len(counts):
            low, high = int(counts.min()), int(counts.max())
            n = f"n = {low}" if low == high else f"n = {low}–{high}"
            n += " image" if high == 1 else " images"
        models = ", ".join(dict.fromkeys(frame["model"].astype(str)))
        text = " · ".join(part for part in (models, n, note) if part)
        if self.own:
            columns = int(self.figure.get_figwidth() * 72 / 4.25)
            self.figure.suptitle(wrapped(text, columns), x=0.008, ha="left", color=FAINT)
        else:
            first = self.axes.flat[0]
            title = "\n".join(filter(None, [wrapped(text, 60), first.get_title(loc="left")]))
            first.set_title(title, fontsize=7, fontweight="normal", loc="left")

    def level(self) -> None:
        """Give the panels of a row one y scale where they are the caller's; our own share it already."""
        for row in () if self.own else self.axes:
            limits = np.array([panel.get_ylim() for panel in row])
            for panel in row:
                panel.set_ylim(limits.min(), limits.max())

    def legend(self, handles: Sequence[Any], columns: int = 4) -> None:
        """One legend under all panels, or inside the last panel where the axes are the caller's."""
        if not handles:
            return
        if self.own:
            self.figure.legend(handles=list(handles), loc="outside lower left", ncols=min(columns, len(handles)))
        else:
            self.axes.flat[-1].legend(handles=list(handles))


def wrapped(text: str, columns: int) -> str:
    """Text in lines of at most so many characters; long names are broken anywhere."""
    return "\n".join(textwrap.wrap(text, columns, break_on_hyphens=False)) if text else ""


def canvas(ax: Any, rows: int, columns: int, height_mm: float, **subplots: Any) -> Canvas:
    """Panels in a new figure of double-column width, or the axes that the caller brought.

    Args:
        ax: None for a new figure; else one Axes, or a sequence of as many as there are panels, row by row.
        rows: rows of panels.
        columns: columns of panels.
        height_mm: height of a new figure.
        **subplots: for ``Figure.subplots`` (``sharex``, ``sharey``, ``width_ratios``, …).

    Raises:
        ValueError: if the number of axes is not the number of panels.
    """
    if ax is None:
        figure = Drawing(figsize=(WIDTH_MM / 25.4, height_mm / 25.4), layout="constrained")
        return Canvas(figure, figure.subplots(rows, columns, squeeze=False, **subplots), own=True)
    given = np.array([ax] if isinstance(ax, Axes) else ax, dtype=object).ravel()
    if len(given) != rows * columns:
        raise ValueError(
            f"this figure has {rows * columns} panels ({rows} × {columns}), got {len(given)} axes. Leave out ax for a "
            "new figure, or choose fewer panels."
        )
    return Canvas(given[0].figure, given.reshape(rows, columns), own=False)


def norm_columns(norms: Iterable[str]) -> tuple[list[str], list[float]]:
    """The norms in order, and their panels' widths: the final norm is one point and needs little."""
    order = [norm for norm in NORMS if norm in set(norms)]
    single = len(order) == 1
    return order, [0.13 if norm == "final_norm" and not single else 1.0 for norm in order]


def depth_axis(
    ax: Axes, blocks: NDArray[Any] | pd.Series, final: bool = False, label: bool = True, room: float = 12.5
) -> None:
    """A block axis: whole numbers only, at most about ``room`` of them, with half a block of space on both sides."""
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


def plain_number(value: float, _: object = None) -> str:
    """1000 as 1000, 0.05 as 0.05, 1e6 as 1e6; no mathematics markup."""
    moderate = value == 0 or 1e-3 <= abs(value) < 1e5
    text = f"{value:g}" if moderate else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return text.replace("-", "−")


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, at least two of them labelled."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    decades = np.log10(high) - np.log10(low)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    ax.yaxis.set_minor_formatter(NullFormatter())


def zero_line(ax: Axes, at: float = 0.0) -> None:
    """A thin line to read signs against."""
    ax.axhline(at, color=INK, linewidth=0.6, zorder=1)


def depth_line(
    ax: Axes, rows: pd.DataFrame, colour: str, marker: str, *, hollow: bool = False, shift: float = 0.0
) -> None:
    """One series over blocks with its interval: a band, or a bar where there is one block only.

    ``hollow`` draws it dashed with hollow markers, as all figures do for what goes into a module.
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
    """Colour, dashes and marker of a series."""
    return {
        "color": colour,
        "linestyle": (0, (3.2, 1.6)) if hollow else "-",
        "marker": marker,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour,
    }


def handle(label: str, colour: str, marker: str, hollow: bool = False) -> Line2D:
    """A legend's entry for a series."""
    return Line2D([], [], label=label, **line_look(colour, marker, hollow))


def draw_before_after(
    frame: pd.DataFrame, ax: Any, ylabel: str, *, zero: bool = True, log: bool = False, note: str = INTERVALS
) -> Figure:
    """Series over blocks before and after each norm, a panel for each norm.

    ``frame`` has the columns of ``tokenlens.figures._rows.before_after``.
    """
    norms, widths = norm_columns(frame["norm"])
    page = canvas(ax, 1, len(norms), 72, sharey=True, width_ratios=widths)
    groups = in_order(frame["group"])
    for column, norm in enumerate(norms):
        panel = page.axes[0, column]
        inside = frame[frame["norm"] == norm]
        for group in groups:
            for state in ("before", "after"):
                rows = inside[(inside["group"] == group) & (inside["state"] == state)]
                if len(rows):
                    aside = 0.0 if norm != "final_norm" else -0.35 if state == "before" else 0.35
                    depth_line(panel, rows, COLOURS[group], MARKERS[group], hollow=state == "before", shift=aside)
        depth_axis(panel, inside["block"], final=norm == "final_norm")
        panel.set_title(norm_title(frame, norm))
        panel.grid(axis="y")
        panel.tick_params(axis="y", which="both", left=column == 0)
        if zero:
            zero_line(panel)
    if log:
        log_axis(page.axes[0, 0])
    page.axes[0, 0].set_ylabel(ylabel)
    page.level()
    page.legend(
        [
            handle(f"{pair_title(group)}, {state}", COLOURS[group], MARKERS[group], state == "before")
            for group in groups
            for state in ("before", "after")
        ]
    )
    page.header(frame, note if frame["ci_low"].notna().any() else "")
    return page.figure


def heat_map(
    ax: Axes, values: NDArray[np.float64], low: float, high: float, *, diverging: bool = False, levels: int = 0
) -> AxesImage:
    """A matrix as an image of one pixel a cell, row 0 on top; with ``levels`` the colours are steps."""
    colours = matplotlib.colormaps[DIVERGING if diverging else SEQUENTIAL]
    norm: Normalize
    norm = BoundaryNorm(np.linspace(low, high, levels + 1), colours.N) if levels else Normalize(low, high)
    image = ax.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="none")
    for side in ax.spines.values():
        side.set_visible(False)
    return image


def colour_bar(figure: Figure, image: ScalarMappable, axes: Any, label: str, **options: Any) -> None:
    """A colour bar with its unit."""
    bar = figure.colorbar(image, ax=axes, **{"pad": 0.015, "aspect": 28, "fraction": 0.05, **options})
    if label:
        bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)


def whole_ticks(count: int, room: int = 8) -> list[int]:
    """Whole-number ticks 0 … count−1, at most about ``room`` of them."""
    step = next(s for s in (1, 2, 4, 5, 10, 20, 50, 100, 200, 500, 1000) if count / s <= room or s == 1000)
    return list(range(0, count, step))
