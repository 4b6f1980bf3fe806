"""Models side by side: how each looks, their names, and the rows of a comparison that a figure draws."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tokenlens.figures._panels import depth_axis
from tokenlens.figures._rows import listed, pair_title, without_images
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import BOLD, Canvas, canvas, characters, images_text, paper, wrapped
from tokenlens.figures.style import MODEL_COLOURS, MODEL_DASHES, MODEL_MARKERS

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from tokenlens.comparison.comparison import Comparison

MOST_LINES = 3
"""Names that need more lines than this over a panel are replaced by letters, which the legend explains."""


def colour_of(number: int) -> str:
    """The colour of a comparison's model, by its place in the comparison."""
    return MODEL_COLOURS[number % len(MODEL_COLOURS)]


def model_look(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a model's line; beyond six models markers and dashes go on in other pairs."""
    again = number // len(MODEL_COLOURS)
    return {
        "color": colour_of(number),
        "linestyle": MODEL_DASHES[(number + again) % len(MODEL_DASHES)],
        "marker": MODEL_MARKERS[(number + 2 * again) % len(MODEL_MARKERS)],
        "markerfacecolor": colour_of(number),
        "markeredgecolor": colour_of(number),
    }


def letter_of(number: int) -> str:
    """A model's letter: A for the first."""
    return string.ascii_uppercase[number % 26] + (str(number // 26 + 1) if number >= 26 else "")


@dataclass(frozen=True)
class Names:
    """What models are called in a figure: in full where that fits, else by letters.

    Attributes:
        full: full label by the model's number.
        lettered: whether panels use letters.
    """

    full: dict[int, str]
    lettered: bool = False

    def short(self, number: int) -> str:
        """What stands over a panel or at an axis."""
        return letter_of(number) if self.lettered else self.full[number]

    def handles(self, lines: bool = True) -> list[Line2D]:
        """A legend's entries; without ``lines`` only letters are explained, and nothing needs to be said of names."""
        if not lines and not self.lettered:
            return []
        look = model_look if lines else lambda number: {"linestyle": "none", "color": colour_of(number), "marker": ""}
        return [
            Line2D([], [], label=f"{letter_of(number)}: {text}" if self.lettered else text, **look(number))
            for number, text in self.full.items()
        ]


def names_of(frame: pd.DataFrame, width_mm: float | None = None, lettered: bool = False) -> Names:
    """The names of a frame's models, from its columns ``label`` and ``model_number``.

    Args:
        frame: of a comparison's figure.
        width_mm: the width that a name may have; names that need more than three lines become letters.
        lettered: use letters in any case.
    """
    named = frame[["model_number", "label"]].dropna().drop_duplicates("model_number").sort_values("model_number")
    full = {int(number): str(label) for number, label in named.itertuples(index=False)}
    if width_mm is not None:
        room = int(characters(width_mm) * BOLD)
        lettered |= any(wrapped(text, room).count("\n") >= MOST_LINES for text in full.values())
    return Names(full, lettered)


def numbers_of(comparison: Comparison) -> dict[str, int]:
    """Each label's place in the comparison."""
    return {label: number for number, label in enumerate(comparison.labels)}


def rows_of_models(
    comparison: Comparison,
    metric: str,
    *,
    parts: str | Sequence[str] | None = None,
    sites: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The comparison's rows of one metric, with ``model_number`` and ``left_out``, which says who has none and why.

    Raises:
        NothingToDraw: if fewer than two models have such rows.
    """
    everything = rows = comparison.table[comparison.table["metric"] == metric]
    for column, wanted in (("part", parts), ("site", sites), ("group", groups)):
        if wanted is None or rows.empty:
            continue
        chosen = rows[rows[column].isin(listed(wanted))]
        if chosen.empty:
            present = ", ".join(repr(str(value)) for value in rows[column].unique())
            raise NothingToDraw(f"{metric} has no {column} {', '.join(map(repr, listed(wanted)))}. It has: {present}.")
        rows = chosen
    have = [label for label in comparison.labels if (rows["label"] == label).any()]
    names = [pair_title(name) for name in listed(groups or [])] or listed(sites or parts or [])
    reasons = []
    for label in comparison.labels:
        because = comparison.analyses[label].not_applicable.get(metric) or f"{metric} not computed"
        if (everything["label"] == label).any():
            because = f"no {', '.join(names)}"
        if label not in have:
            reasons.append(f"{label}: {because}")
    if len(have) < 2:
        raise NothingToDraw(f"{metric} of fewer than two models: {'; '.join(reasons)}")
    rows = without_images(rows.copy(), metric)
    rows.insert(1, "model_number", rows["label"].map(numbers_of(comparison)))
    rows["left_out"] = "; ".join(reasons)
    return rows.reset_index(drop=True)


def shared(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of those values of the columns that at least two models have: one alone is no comparison.

    Raises:
        NothingToDraw: if there are none.
    """
    kept = rows[rows.groupby(list(columns), sort=False)["label"].transform("nunique") >= 2]
    if kept.empty:
        metric = ", ".join(dict.fromkeys(rows["metric"]))
        raise NothingToDraw(f"no two models have numbers of {metric} at the same {' and '.join(columns)}")
    return kept.reset_index(drop=True)


def comparison_note(page: Canvas, frame: pd.DataFrame, note: str) -> None:
    """n, how it was tested, a note, and who is left out, on top of a comparison's figure."""
    n = images_text(frame["n"]) if "n" in frame else ""
    tests = _texts(frame, "test")
    how = {"paired t": "paired by image", "Welch": "unpaired", "intervals": "from intervals"}
    pairing = ", ".join(how.get(test, test) for test in tests)
    out = "; ".join(_texts(frame, "left_out"))
    page.note(" · ".join(filter(None, [n, pairing, note, f"left out: {out}" if out else ""])))


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    """The different texts of a column, without empty ones."""
    return [text for text in dict.fromkeys(frame.get(column, ())) if isinstance(text, str) and text]


@dataclass(frozen=True)
class Cell:
    """A panel of a grid, what it is of, and where it stands."""

    panel: Axes
    row: Any
    column: Any
    left: bool
    top: bool
    bottom: bool


def grid(
    ax: Any, rows: Sequence[Any], columns: Sequence[Any], most: int, height_mm: tuple[float, float], **subplots: Any
) -> tuple[Canvas, list[Cell]]:
    """Panels for each pair of a row and a column, with at most so many side by side: the other columns follow below.

    Args:
        ax: as for ``canvas``.
        rows: what the rows are of.
        columns: what the columns are of.
        most: panels side by side.
        height_mm: of the figure without panels, and of each row of panels.
        **subplots: as for ``canvas``.
    """
    parts = 1 if ax is not None else -(-len(columns) // most)
    width = -(-len(columns) // parts)
    page = canvas(ax, parts * len(rows), width, height_mm[0] + parts * len(rows) * height_mm[1], **subplots)
    cells, used = [], set()
    for index, column in enumerate(columns):
        part, across = divmod(index, width)
        for down, row in enumerate(rows):
            panel = page.axes[part * len(rows) + down, across]
            used.add(panel)
            bottom = down == len(rows) - 1 and index + width >= len(columns)
            cells.append(Cell(panel, row, column, left=across == 0, top=down == 0, bottom=bottom))
    for panel in page.axes.flat:
        if panel not in used:
            panel.remove()
    return page, cells


def places(rows: pd.DataFrame, axis: str) -> np.ndarray[Any, Any]:
    """Where rows stand on a depth axis: relative depth, or the block's number."""
    return rows["depth" if axis == "relative" else "block"].to_numpy(dtype=float)


def check_axis(axis: str) -> None:
    """ValueError unless a depth axis is ``"relative"`` or ``"block"``."""
    if axis not in ("relative", "block"):
        raise ValueError(f"the axis is 'relative' (depth from 0 to 1) or 'block', got {axis!r}")


def models_depth_axis(panel: Axes, rows: pd.DataFrame, axis: str, label: bool = True) -> None:
    """An axis for models of different depth: relative depth from 0 to 1, or block numbers."""
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
    """A line with its band for each model of the rows."""
    for number, line in by_model(rows):
        line = line.sort_values("block")
        x, low, high = places(line, axis), line["ci_low"].to_numpy(dtype=float), line["ci_high"].to_numpy(dtype=float)
        if len(line) == 1:
            panel.vlines(x, low, high, color=colour_of(number), linewidth=1.0, zorder=3)
        panel.fill_between(x, low, high, color=colour_of(number), alpha=0.18, linewidth=0, zorder=2)
        every = max(1, round(len(line) / (8 if paper().narrow else 12)))
        panel.plot(x, line["value"].to_numpy(dtype=float), zorder=4, markevery=every, **model_look(number))


def by_model(rows: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """The rows of each model with its number, the last model first: the first one is drawn on top."""
    for number in sorted(rows["model_number"].unique(), reverse=True):
        yield int(number), rows[rows["model_number"] == number]


def ink_on(colours: Colormap, share: float) -> str:
    """Black or white, whichever reads better on a colour of a map."""
    red, green, blue, _ = colours(share)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def small_marker() -> float:
    """Size of a marker where many stand close, in points."""
    return 0.85 * float(matplotlib.rcParams["lines.markersize"])
