"""The page that a figure is drawn on: its size and style, its panels, header and legend.

Nothing here touches pyplot or leaves a trace in matplotlib's global state.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import font_scalings
from numpy.typing import NDArray

from tokenlens.catalog import nearest
from tokenlens.figures._svg import svg_of
from tokenlens.figures.style import FAINT, NARROW_MM, NARROW_STYLE, STYLE, WIDTHS_MM

P = ParamSpec("P")
T = TypeVar("T")

SIZES_MM = (30.0, 1000.0)
"""The smallest and the largest side of a figure."""

EM = 0.61
"""Mean width of a character over its size: a little more than DejaVu Sans has in names of models."""


BOLD = 0.88
"""How many characters of bold text, which titles are, stand in the place of one."""


@dataclass(frozen=True)
class Paper:
    """The size that was asked for, in millimetres; a height of None is what the figure needs."""

    width: float = WIDTHS_MM["double"]
    height: float | None = None

    @property
    def narrow(self) -> bool:
        """Whether panels should rather stand below than beside each other."""
        return self.width < NARROW_MM


_paper: ContextVar[Paper | None] = ContextVar("paper", default=None)


def paper() -> Paper:
    """The paper of the figure that is being drawn."""
    return _paper.get() or Paper()


def paper_of(width: str | float | None, height: float | None) -> Paper:
    """The paper of a width (``"single"``, ``"double"`` or mm) and a height (mm).

    Raises:
        ValueError: for any other word, and for sides below 30 mm or above 1 m.
    """
    if isinstance(width, str):
        if width not in WIDTHS_MM:
            words = ", ".join(f"{name!r} ({size:g} mm)" for name, size in WIDTHS_MM.items())
            raise ValueError(f"a figure's width is {words} or a number of millimetres, got {width!r}")
        width = WIDTHS_MM[width]
    for name, side in (("width", width), ("height", height)):
        if side is not None and not SIZES_MM[0] <= side <= SIZES_MM[1]:
            raise ValueError(f"a figure's {name} is between {SIZES_MM[0]:g} and {SIZES_MM[1]:g} mm, got {side:g}")
    return Paper(WIDTHS_MM["double"] if width is None else float(width), height)


def look(paper: Paper, style: Any = None) -> dict[str, Any]:
    """matplotlib's settings for a paper: the shared ones, and a user's style on top.

    Args:
        paper: the figure's.
        style: a name of ``matplotlib.style.available``, a file, a mapping, or a list of such.

    Raises:
        LookupError: for an unknown name, with the nearest ones.
        ValueError: for a setting that matplotlib does not have.
    """
    settings = {**STYLE, **(NARROW_STYLE if paper.narrow else {})}
    if style is None:
        return settings
    chosen: list[Any] = [style] if isinstance(style, str | os.PathLike | Mapping) else list(style)
    for one in chosen:
        if isinstance(one, str) and one not in matplotlib_style.library and not os.path.exists(one):
            close = nearest(one, matplotlib_style.available)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise LookupError(f"there is no matplotlib style and no file {one!r}.{hint}")
        given: Any = one if isinstance(one, Mapping) else matplotlib_style.library.get(str(one))
        try:
            if given is None:
                given = matplotlib.rc_params_from_file(os.fspath(one), use_default_template=False)
            with matplotlib.rc_context(dict(given)):
                settings |= dict(given)
        except (KeyError, ValueError) as error:
            raise ValueError(f"the style {one!r} cannot be used: {str(error.args[0]).splitlines()[0]}") from error
    return settings


class Drawing(Figure):
    """A matplotlib figure that shows itself in Jupyter without pyplot, and keeps the settings it was drawn with."""

    look: Mapping[str, Any] = STYLE

    def _repr_svg_(self) -> str:
        # A notebook is one page, on which no two figures may share an id.
        svg = svg_of(self, "figure")
        digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
        return re.sub(r'(\sid="|href="#|url\(#)figure-', rf"\g<1>figure-{digest}-", svg)


def look_of(figure: Figure) -> dict[str, Any]:
    """The settings that a figure was drawn with."""
    return dict(getattr(figure, "look", STYLE))


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Draw in the shared style, and leave matplotlib's settings as they were.

    The function gains the keywords ``width``, ``height`` and ``style`` of ``tokenlens.figures.draw``.
    """

    @functools.wraps(plot)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        options: dict[str, Any] = dict(kwargs)
        sheet = paper_of(options.pop("width", None), options.pop("height", None))
        settings = look(sheet, options.pop("style", None))
        token = _paper.set(sheet)
        try:
            with matplotlib_style.context(["default", settings]):
                figure = plot(*args, **options)
        finally:
            _paper.reset(token)
        if isinstance(figure, Drawing):
            figure.look = settings
        return figure

    return wrapped


def points(size: str = "medium") -> float:
    """The size of "medium", "small" … text of the figure that is being drawn, in points."""
    return float(matplotlib.rcParams["font.size"]) * float(font_scalings[size])


def characters(width_mm: float, size: str = "medium") -> int:
    """About how many characters of "medium", "small" … text fit into a width."""
    return max(int(width_mm / 25.4 * 72 / (EM * points(size))), 4)


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces, and names behind _ / - or a dot before a letter; longer pieces anywhere."""

    wordsep_re = re.compile(r"(\s+|\S+?(?:(?<=\w)[_/-]|\.(?=[^\W\d]))(?=\w))")


def wrapped(text: str, columns: int) -> str:
    """Text in lines of at most so many characters; names are broken where their parts end."""
    return "\n".join(_Wrapper(columns).wrap(text))


@dataclass(frozen=True)
class Canvas:
    """The panels of one figure, (rows, columns), on a figure of ours or on axes that the caller brought."""

    figure: Figure
    axes: NDArray[Any]
    own: bool

    def header(self, frame: pd.DataFrame, note: str = "") -> None:
        """Model, n and a note on top of the figure, wrapped to its width."""
        n = images_text(frame["n"]) if "n" in frame else ""
        models = ", ".join(dict.fromkeys(frame["model"].astype(str)))
        self.note(" · ".join(part for part in (models, n, note) if part))

    def note(self, text: str) -> None:
        """Text on top of the figure, wrapped to its width."""
        if self.own:
            lines = wrapped(text, characters(self.figure.get_figwidth() * 25.4 - 3, "small"))
            self._make_room(lines.count("\n"))
            self.figure.suptitle(lines, x=0.008, ha="left", color=FAINT)
        else:
            first = self.axes.flat[0]
            title = "\n".join(filter(None, [wrapped(text, 60), first.get_title(loc="left")]))
            first.set_title(title, fontsize="small", fontweight="normal", loc="left")

    def _make_room(self, lines: int) -> None:
        """Let the figure grow by so many lines of small text, so that its panels stay as high as they should be."""
        if paper().height is None:
            self.figure.set_figheight(self.figure.get_figheight() + lines * 1.25 * points("small") / 72)

    def title(self, panel: Axes, text: str, share: float | None = None) -> None:
        """A panel's title, wrapped to its width, which is about ``share`` of the figure's."""
        if share is None:
            share = 0.92 / self.axes.shape[1]
        width = self.figure.get_figwidth() * 25.4 * share
        panel.set_title(wrapped(text, max(int(characters(width) * BOLD), 5)))

    def level(self) -> None:
        """Give the panels of a row one y scale where they are the caller's; our own share it already."""
        for row in () if self.own else self.axes:
            limits = np.array([panel.get_ylim() for panel in row])
            for panel in row:
                panel.set_ylim(limits.min(), limits.max())

    def legend(self, handles: Sequence[Any], columns: int = 4) -> None:
        """One legend under all panels, or inside the last panel where the axes are the caller's.

        It has as many columns, at most ``columns``, as fit into the figure's width; longer labels are wrapped.
        """
        if not handles:
            return
        if not self.own:
            self.axes.flat[-1].legend(handles=list(handles))
            return
        width = self.figure.get_figwidth() * 25.4 - 4
        settings = matplotlib.rcParams
        beside = settings["legend.handlelength"] + settings["legend.handletextpad"] + settings["legend.columnspacing"]
        beside *= points("small") / 72 * 25.4
        for handle in handles:
            handle.set_label(wrapped(str(handle.get_label()), characters(width - beside, "small")))
        widths = [
            beside + max(map(len, str(handle.get_label()).split("\n"))) * EM * points("small") / 72 * 25.4
            for handle in handles
        ]
        count = min(columns, len(handles))
        while count > 1 and sum(_column_widths(widths, count)) > width:
            count -= 1
        count = -(-len(handles) // -(-len(handles) // count))  # as many in each column, with as many rows
        rows = -(-len(handles) // count)
        lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
        self._make_room(max(sum(lines[i * rows : (i + 1) * rows]) for i in range(count)) - 1)
        self.figure.legend(handles=list(handles), loc="outside lower left", ncols=count)


def _column_widths(widths: Sequence[float], count: int) -> list[float]:
    """The widest entry of each column, filled as matplotlib fills a legend: column by column."""
    return [float(max(part)) for part in np.array_split(np.asarray(widths), count)]


def images_text(counts: pd.Series) -> str:
    """ "n = 64 images", or the range where not all numbers have seen the same."""
    counts = counts.dropna()
    if not len(counts):
        return ""
    low, high = int(counts.min()), int(counts.max())
    n = f"n = {low}" if low == high else f"n = {low}–{high}"
    return n + (" image" if high == 1 else " images")


def canvas(ax: Any, rows: int, columns: int, height_mm: float, **subplots: Any) -> Canvas:
    """Panels in a new figure on the paper that was asked for, or the axes that the caller brought.

    Args:
        ax: None for a new figure; else one Axes, or a sequence of as many as there are panels, row by row.
        rows: rows of panels.
        columns: columns of panels.
        height_mm: height of a new figure where none was asked for.
        **subplots: for ``Figure.subplots`` (``sharex``, ``sharey``, ``width_ratios``, …).

    Raises:
        ValueError: if the number of axes is not the number of panels, or a size is given with axes.
    """
    sheet = paper()
    if ax is None:
        return Canvas(figure := sheet_of(height_mm), figure.subplots(rows, columns, squeeze=False, **subplots), True)
    if sheet != Paper():
        raise ValueError("width and height are of a new figure: leave them out, or leave out ax")
    given = np.array([ax] if isinstance(ax, Axes) else ax, dtype=object).ravel()
    if len(given) != rows * columns:
        raise ValueError(
            f"this figure has {rows * columns} panels ({rows} × {columns}), got {len(given)} axes. Leave out ax for a "
            "new figure, or choose fewer panels."
        )
    return Canvas(given[0].figure, given.reshape(rows, columns), own=False)


def sheet_of(height_mm: float) -> Drawing:
    """A new, empty figure on the paper that was asked for; ``height_mm`` where no height was."""
    sheet = paper()
    height = height_mm if sheet.height is None else sheet.height
    return Drawing(figsize=(sheet.width / 25.4, height / 25.4), layout="constrained")
