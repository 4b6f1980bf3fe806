"""Lay out a figure: paper size and style, panels, header and legend.

Neither pyplot nor matplotlib's global state is used.
"""

from __future__ import annotations

import functools
import hashlib
import io
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
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from tokenlens.catalog import did_you_mean
from tokenlens.figures._files import as_svg
from tokenlens.figures.style import FAINT, NARROW_MM, NARROW_STYLE, STYLE, WIDTHS_MM

P = ParamSpec("P")
T = TypeVar("T")

SIZES_MM = (30.0, 1000.0)
"""Smallest and largest side of a figure."""

EM = 0.61
"""Mean width of a character relative to its size: slightly more than model names have in DejaVu Sans."""

ON_SCREEN = 4 / 3
"""Size of figures in a notebook relative to paper: their smallest text, 5.6 points, is then 10 pixels high."""

BOLD = 0.88
"""Bold characters, as in titles, that fit into the width of one regular character."""


@dataclass(frozen=True)
class Paper:
    """Requested size of a figure in millimetres; a height of None means as high as the figure needs."""

    width: float = WIDTHS_MM["double"]
    height: float | None = None

    @property
    def narrow(self) -> bool:
        """Whether panels should be stacked rather than placed side by side."""
        return self.width < NARROW_MM


_paper: ContextVar[Paper | None] = ContextVar("paper", default=None)


def paper() -> Paper:
    """Return the paper of the figure that is being drawn."""
    return _paper.get() or Paper()


def paper_of(width: str | float | None, height: float | None) -> Paper:
    """Return the paper for a width (``"single"``, ``"double"`` or mm) and a height (mm).

    Raises:
        ValueError: for any other name, and for a side below 30 mm or above 1 m.
    """
    if isinstance(width, str):
        if width not in WIDTHS_MM:
            words = ", ".join(f"{name!r} ({size:g} mm)" for name, size in WIDTHS_MM.items())
            raise ValueError(f"a figure's width must be {words} or a number of millimetres, got {width!r}")
        width = WIDTHS_MM[width]
    for name, side in (("width", width), ("height", height)):
        if side is not None and not SIZES_MM[0] <= side <= SIZES_MM[1]:
            raise ValueError(f"a figure's {name} must be {SIZES_MM[0]:g} to {SIZES_MM[1]:g} mm, got {side:g}")
    return Paper(WIDTHS_MM["double"] if width is None else float(width), height)


def look(paper: Paper, style: Any = None) -> dict[str, Any]:
    """Return matplotlib settings for a paper: the shared style, overridden by a user's style.

    Args:
        paper: the figure's paper.
        style: a name in ``matplotlib.style.available``, a file, a mapping, or a list of these.

    Raises:
        LookupError: for an unknown name; the message lists the nearest ones.
        ValueError: for a setting that matplotlib does not have.
    """
    settings = {**STYLE, **(NARROW_STYLE if paper.narrow else {})}
    if style is None:
        return settings
    chosen: list[Any] = [style] if isinstance(style, str | os.PathLike | Mapping) else list(style)
    for one in chosen:
        if isinstance(one, str) and one not in matplotlib_style.library and not os.path.exists(one):
            hint = did_you_mean(one, matplotlib_style.available)
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


class StyledFigure(Figure):
    """A matplotlib figure that displays itself in Jupyter without pyplot and remembers its style settings.

    It is shown as SVG, or as JPEG if there are photographs in it.
    """

    look: Mapping[str, Any] = STYLE

    def _repr_svg_(self) -> str | None:
        if self._has_photographs():
            return None
        # All figures of a notebook share one page, so their ids must differ.
        svg = as_svg(self, "figure")
        svg = re.sub(
            r'\b(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{ON_SCREEN * float(m[2]):g}pt"', svg, count=2
        )
        digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
        return re.sub(r'(\sid="|href="#|url\(#)figure-', rf"\g<1>figure-{digest}-", svg)

    def _repr_jpeg_(self) -> bytes | None:
        # As SVG, photographs would make a notebook eight times as large.
        if not self._has_photographs():
            return None
        jpeg = io.BytesIO()
        with matplotlib_style.context(["default", dict(self.look)]):
            self.savefig(jpeg, format="jpeg", dpi=96 * ON_SCREEN, pil_kwargs={"quality": 70})
        return jpeg.getvalue()

    def _has_photographs(self) -> bool:
        """Return whether there are pictures in colours; maps of numbers have two dimensions."""
        pictures = [image.get_array() for image in self.findobj(AxesImage)]
        return any(pixels is not None and pixels.ndim == 3 for pixels in pictures)


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Decorate a plotting function to draw in the shared style, without changing matplotlib's settings.

    The function accepts the keywords ``width``, ``height`` and ``style`` of ``tokenlens.figures.draw``, too.
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
        if isinstance(figure, StyledFigure):
            figure.look = settings
        return figure

    return wrapped


def points(size: str = "medium") -> float:
    """Return the size of "medium", "small", … text in points, in the figure that is being drawn."""
    return float(matplotlib.rcParams["font.size"]) * float(font_scalings[size])


def characters(width_mm: float, size: str = "medium") -> int:
    """Estimate how many characters of "medium", "small", … text fit into a width."""
    return max(int(width_mm / 25.4 * 72 / (EM * points(size))), 4)


class _Wrapper(textwrap.TextWrapper):
    """Text wrapper that breaks lines at spaces, and long names after ``_ / -`` or a dot before a letter."""

    wordsep_re = re.compile(r"(\s+|\S+?(?:(?<=\w)[_/-]|\.(?=[^\W\d]))(?=\w))")


def wrapped(text: str, columns: int) -> str:
    """Wrap text to lines of at most ``columns`` characters; names are broken where one of their parts ends."""
    return "\n".join(_Wrapper(columns).wrap(text))


@dataclass(frozen=True)
class Canvas:
    """The panels of one figure as an array (rows, columns), in a new figure or on axes passed by the caller.

    Attributes:
        figure: the figure that holds the panels.
        axes: the panels.
        new: whether the figure was created for them.
    """

    figure: Figure
    axes: NDArray[Any]
    new: bool

    def header(self, frame: pd.DataFrame, note: str = "") -> None:
        """Write model, n and a note at the top of the figure, wrapped to its width."""
        n = images_text(frame["n"]) if "n" in frame else ""
        models = ", ".join(dict.fromkeys(frame["model"].astype(str)))
        self.note(" · ".join(part for part in (models, n, note) if part))

    def note(self, text: str) -> None:
        """Write text at the top of the figure, wrapped to its width."""
        if self.new:
            lines = wrapped(text, characters(self.figure.get_figwidth() * 25.4 - 3, "small"))
            self._make_room(lines.count("\n"))
            self.figure.suptitle(lines, x=0.008, ha="left", color=FAINT)
        else:
            first = self.axes.flat[0]
            title = "\n".join(filter(None, [wrapped(text, 60), first.get_title(loc="left")]))
            first.set_title(title, fontsize="small", fontweight="normal", loc="left")

    def _make_room(self, lines: int) -> None:
        """Grow the figure by some lines of small text, so that its panels keep their height."""
        if paper().height is None:
            self.figure.set_figheight(self.figure.get_figheight() + lines * 1.25 * points("small") / 72)

    def title(self, panel: Axes, text: str, share: float | None = None) -> None:
        """Set a panel's title, wrapped to its width, which is about ``share`` of the figure's."""
        if share is None:
            share = 0.92 / self.axes.shape[1]
        width = self.figure.get_figwidth() * 25.4 * share
        panel.set_title(wrapped(text, max(int(characters(width) * BOLD), 5)))

    def level(self) -> None:
        """Give the panels of a row the same y limits if the caller passed them; in a new figure they share the axis."""
        for row in () if self.new else self.axes:
            limits = np.array([panel.get_ylim() for panel in row])
            for panel in row:
                panel.set_ylim(limits.min(), limits.max())

    def legend(self, handles: Sequence[Any], columns: int = 4) -> None:
        """Add a legend below all panels, or inside the last panel if the axes were passed by the caller.

        It has at most ``columns`` columns, as many as fit into the figure's width; long labels are wrapped.
        """
        if not handles:
            return
        if not self.new:
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
        count = -(-len(handles) // -(-len(handles) // count))  # balance the columns without adding rows
        rows = -(-len(handles) // count)
        lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
        self._make_room(max(sum(lines[i * rows : (i + 1) * rows]) for i in range(count)) - 1)
        self.figure.legend(handles=list(handles), loc="outside lower left", ncols=count)


def _column_widths(widths: Sequence[float], count: int) -> list[float]:
    """Return the width of the widest entry in each column of a legend, which matplotlib fills column by column."""
    return [float(max(part)) for part in np.array_split(np.asarray(widths), count)]


def images_text(counts: pd.Series) -> str:
    """Return "n = 64 images", or the range if the counts differ."""
    counts = counts.dropna()
    if not len(counts):
        return ""
    low, high = int(counts.min()), int(counts.max())
    n = f"n = {low}" if low == high else f"n = {low}–{high}"
    return n + (" image" if high == 1 else " images")


def canvas(ax: Any, rows: int, columns: int, height_mm: float, **subplots: Any) -> Canvas:
    """Create panels in a new figure, or arrange axes passed by the caller.

    Args:
        ax: None for a new figure; otherwise one Axes, or a sequence with one Axes per panel, row by row.
        rows: number of rows of panels.
        columns: number of columns of panels.
        height_mm: height of a new figure unless the user chose one.
        **subplots: options of ``Figure.subplots`` (``sharex``, ``sharey``, ``width_ratios``, …).

    Raises:
        ValueError: if the number of axes differs from the number of panels, or a size is given together with axes.
    """
    sheet = paper()
    if ax is None:
        figure = new_figure(height_mm)
        return Canvas(figure, figure.subplots(rows, columns, squeeze=False, **subplots), new=True)
    if sheet != Paper():
        raise ValueError("width and height apply to a new figure only: leave them out, or leave out ax")
    given = np.array([ax] if isinstance(ax, Axes) else ax, dtype=object).ravel()
    if len(given) != rows * columns:
        raise ValueError(
            f"this figure has {rows * columns} panels ({rows} × {columns}), got {len(given)} axes. Leave out ax for a "
            "new figure, or choose fewer panels."
        )
    return Canvas(given[0].figure, given.reshape(rows, columns), new=False)


def new_figure(height_mm: float) -> StyledFigure:
    """Create an empty figure on the current paper; ``height_mm`` applies unless the user chose a height."""
    sheet = paper()
    height = height_mm if sheet.height is None else sheet.height
    return StyledFigure(figsize=(sheet.width / 25.4, height / 25.4), layout="constrained")
