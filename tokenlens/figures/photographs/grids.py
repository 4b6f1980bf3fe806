"""Draw maps of photographs in rows and columns on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.figures.page import Canvas, characters, new_figure, paper, points, styled, wrapped
from tokenlens.figures.style import DIVERGING, INK, MARKED_PATCH, SEQUENTIAL, plain_number
from tokenlens.images.files import base_name
from tokenlens.overlays.drawing import draw_map, draw_pixels, outline
from tokenlens.overlays.map_grid import MapGrid, shared_limits

PHOTOGRAPH = 1.45
"""Width of the photograph relative to a map, where there are several rows of maps."""

SCALE_MM = 11.0
"""Height of the colour bar with its labels."""


@styled
def draw_maps(grids: MapGrid | Sequence[MapGrid], limits: tuple[float, float] | None = None) -> Figure:
    """Draw the maps of one photograph or several below each other, each beside its photograph, on one scale.

    Args:
        grids: the maps, all of the same kind.
        limits: lowest and highest value of the colour scale; by default those of ``shared_limits`` of these maps. Pass
            those of more maps to draw figures on one scale.

    Raises:
        ValueError: for no maps, or maps of different quantities.
    """
    grids = [grids] if isinstance(grids, MapGrid) else list(grids)
    if len({grid.quantity for grid in grids}) != 1:
        names = ", ".join(dict.fromkeys(grid.quantity or "colours" for grid in grids)) or "none"
        raise ValueError(f"expected maps of one quantity, which share a scale, got {names}")
    if limits is None and not grids[0].colours:
        limits = shared_limits(grids)
    heights = [_height_mm(grid) for grid in grids]
    if limits is not None:
        heights.append(SCALE_MM)
    figure = new_figure(sum(heights) + 6)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.02, wspace=0.01, hspace=0.02)
    outer = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    panels: list[Axes] = []
    drawn: AxesImage | None = None
    for number, grid in enumerate(grids):
        rows = _rows(grid)
        inner = outer[number, 0].subgridspec(
            rows, 1 + grid.columns, width_ratios=[_photograph(grid), *[1] * grid.columns]
        )
        left = figure.add_subplot(inner[:, 0])
        height, width = grid.photograph.shape[:2]
        draw_pixels(left, grid.photograph, (height, width), (height, width))
        left.set_xlabel(_wrapped_name(grid))
        left.set_anchor("N")
        for index in range(len(grid.maps)):
            row, column = divmod(index, grid.columns)
            panel = figure.add_subplot(inner[row, 1 + column])
            drawn = _draw_panel(panel, grid, index, limits)
            panel.set_anchor("N")
            panels.append(panel)
    if limits is not None:
        assert drawn is not None
        bar = figure.add_subplot(outer[-1, 0].subgridspec(1, 3, width_ratios=[1, 2, 1])[0, 1])
        _draw_scale(figure, drawn, bar, grids, limits)
    page = Canvas(figure, np.array([panels], dtype=object), new=True)
    models = dict.fromkeys(grid.model for grid in grids)
    notes = dict.fromkeys(grid.note for grid in grids if grid.note)
    page.header(pd.DataFrame({"model": list(models)}), " · ".join(notes))
    return figure


def _draw_panel(panel: Axes, grid: MapGrid, index: int, limits: tuple[float, float] | None) -> AxesImage:
    height, width = grid.photograph.shape[:2]
    covered = grid.covered or (height, width)
    colours = DIVERGING if grid.signed else SEQUENTIAL
    # Values are opaque, so that their colours are those of the bar; the photograph is beside them.
    drawn = draw_map(panel, grid.maps[index], grid.photograph, covered, colours, limits, opacity=1)
    if grid.outlined is not None:
        shape = (grid.maps.shape[1], grid.maps.shape[2])
        for row, column in np.argwhere(grid.outlined[index]):
            outline(panel, (int(row), int(column)), shape, covered, colour=MARKED_PATCH, line_width=0.8)
    if not grid.rows or index < grid.columns:
        panel.set_title(_fitted(grid.titles[index], grid), fontweight="normal", loc="center")
    if grid.captions:
        panel.set_xlabel(_fitted(grid.captions[index], grid))
    if grid.rows and index % grid.columns == 0:
        panel.set_ylabel(_fitted(grid.rows[index // grid.columns], grid), color=INK)
    return drawn


def _draw_scale(
    figure: Figure, drawn: AxesImage, panel: Axes, grids: Sequence[MapGrid], limits: tuple[float, float]
) -> None:
    """Draw the colour bar; its ends are labelled with what lies beyond them."""
    lowest = min(float(grid.maps.min()) for grid in grids)
    highest = max(float(grid.maps.max()) for grid in grids)
    below, above = lowest < limits[0] - 1e-6, highest > limits[1] + 1e-6
    extend: Any = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    bar = figure.colorbar(drawn, cax=panel, orientation="horizontal", extend=extend, extendfrac=0.02)
    middle = (limits[0] + limits[1]) / 2
    labels = [plain_number(limits[0]), plain_number(round(middle, 3)), plain_number(limits[1])]
    if below:
        labels[0] = f"≤ {labels[0]}"
    if above:
        labels[2] = f"≥ {labels[2]}"
    bar.set_ticks([limits[0], middle, limits[1]], labels=labels, fontsize=points())
    bar.set_label(grids[0].quantity + (f" (largest {plain_number(float(f'{highest:.3g}'))})" if above else ""))
    bar.outline.set_visible(False)


def _rows(grid: MapGrid) -> int:
    return -(-len(grid.maps) // grid.columns)


def _photograph(grid: MapGrid) -> float:
    return PHOTOGRAPH if _rows(grid) > 1 else 1.0


def _map_width_mm(grid: MapGrid) -> float:
    return (paper().width - 6) / (grid.columns + _photograph(grid)) - 1.2


def _height_mm(grid: MapGrid) -> float:
    """Return the height of a photograph's rows, with titles and captions."""
    height, width = grid.photograph.shape[:2]
    line = 1.45 * float(matplotlib.rcParams["font.size"]) / 72 * 25.4
    rows = _rows(grid)
    titles = (1 if grid.rows else rows) * _lines(grid.titles, grid)
    captions = rows * _lines(grid.captions, grid)
    aspect, width_mm = height / width, _map_width_mm(grid)
    beside = _photograph(grid) * width_mm * aspect + line * (
        _lines(grid.titles, grid) + _wrapped_name(grid).count("\n") + 1
    )
    return max(rows * width_mm * aspect + line * (titles + captions) + 1.2 * rows, beside)


def _fitted(text: str, grid: MapGrid) -> str:
    """Return a text wrapped to the width of a map."""
    columns = characters(_map_width_mm(grid))
    return "\n".join(wrapped(line, columns) for line in text.split("\n"))


def _lines(texts: Sequence[str], grid: MapGrid) -> int:
    """Return the largest number of lines of some texts."""
    return max((_fitted(text, grid).count("\n") + 1 for text in texts), default=0)


def _wrapped_name(grid: MapGrid) -> str:
    """Return an image's name without folders, wrapped to the width of the photograph."""
    name = base_name(grid.image)
    return wrapped(name, characters(_photograph(grid) * _map_width_mm(grid)))
