"""Read the drawn points, bars and cells of a figure with their values, for the pointer to show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tokenlens.report.number_format import with_digits

MOST_CELLS = 3000
"""Figures with more cells of heat maps (one per patch and head) show no values of cells."""


def pointed_values(figure: Figure) -> dict[str, Any]:
    """Return the size of a drawn figure and, per panel, its box, points and cells in SVG coordinates.

    Call it after the figure was laid out, as ``save_figure`` does.
    """
    width, height = (72 * side for side in figure.get_size_inches())
    names = dict(_legend_names(figure))
    cells = sum(np.asarray(image.get_array()).size for panel in figure.axes for image in panel.images)
    panels = []
    for panel in figure.axes:
        if panel.get_label() == "<colorbar>" or not panel.get_visible():
            continue
        box = panel.get_position()
        sides = (box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height)
        found: dict[str, Any] = {
            "box": [round(side, 1) for side in sides],
            "title": " ".join(panel.get_title(loc="left").split()),
            "points": [*_points(panel, names, figure.dpi, height)],
        }
        if cells <= MOST_CELLS and len(panel.images) == 1:
            values: Any = np.ma.filled(np.ma.asarray(panel.images[0].get_array(), dtype=float), np.nan)
            found["cells"] = [[with_digits(float(x), 3) for x in row] for row in np.atleast_2d(values)]
            found["row"] = _label(panel, "y")
        if found["points"] or "cells" in found:
            panels.append(found)
    return {"size": [round(width, 1), round(height, 1)], "panels": panels}


def _points(panel: Axes, names: dict[Any, str], dpi: float, height: float) -> Iterator[list[Any]]:
    """Yield x, y and text of each point of a line and each end of a bar."""
    drawn: list[tuple[Any, Any, Any, Any, Artist]] = []
    for line in panel.lines:
        if line.get_transform() == panel.transData:
            x, y = (np.asarray(values, dtype=float) for values in line.get_data())
            drawn += [(a, b, a, b, line) for a, b in zip(x, y, strict=True)]
    for bars in panel.containers:
        if isinstance(bars, BarContainer):
            for bar in bars.patches:
                a, b = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2
                if bars.orientation == "vertical":
                    drawn.append((a, b, a, bar.get_height(), bar))
    label = _label(panel, "x")
    for x, y, at, value, artist in drawn:
        if not np.isfinite(x + y + value):
            continue
        left, up = panel.transData.transform((x, y)) * 72 / dpi
        name = names.get(_look(artist), "")
        whole = label != "block" or float(at).is_integer()
        where = f"{label} {with_digits(float(at), 6)}" if label and whole else ""
        text = ", ".join(part for part in (name, where) if part)
        number = with_digits(float(value), 3)
        yield [round(float(left), 1), round(float(height - up), 1), f"{text}: {number}" if text else number]


def _label(panel: Axes, axis: str) -> str:
    """Return the label of an axis, which may stand at another panel that shares it."""
    together = panel.get_shared_x_axes() if axis == "x" else panel.get_shared_y_axes()
    labels = [panel.get_xlabel() if axis == "x" else panel.get_ylabel()]
    labels += [other.get_xlabel() if axis == "x" else other.get_ylabel() for other in together.get_siblings(panel)]
    return " ".join(next(filter(None, labels), "").split())


def _legend_names(figure: Figure) -> Iterator[tuple[Any, str]]:
    legends = [*figure.legends, *(legend for panel in figure.axes if (legend := panel.get_legend()) is not None)]
    for legend in legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if handle is not None:
                yield _look(handle), " ".join(text.get_text().split())


def _look(artist: Artist) -> Any:
    """Return what an artist and its entry in the legend have in common."""
    if isinstance(artist, Line2D):
        return "line", to_hex(artist.get_color()), artist.get_marker(), to_hex(artist.get_markerfacecolor())
    if isinstance(artist, Patch):
        return "patch", to_hex(artist.get_facecolor()), artist.get_hatch()
    return None
