"""A still picture of the widget, for notebooks that are read without a kernel."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenlens.explorer.exploration import Exploration, Selection, View
from tokenlens.explorer.panels import Panel
from tokenlens.figures.page import wrapped
from tokenlens.figures.style import DIVERGING, SEQUENTIAL, STYLE
from tokenlens.images.files import base_name
from tokenlens.overlays.drawing import draw_pixels, outline
from tokenlens.overlays.maps import photograph
from tokenlens.overlays.selection import covered_by, model_title
from tokenlens.recording.recording import Recording

WIDTH_PX, DPI = 1000, 100
"""Width of the picture."""

LINE, GAP = 14.0, 8.0
"""Height of a line of text, and the space between panels, in pixels."""

MOST_HEADS = 16
"""Heads side by side."""

TEXT = {"font.size": 8.0}
"""8 points are 11 pixels."""


def draw_still(
    exploration: Exploration, selection: Selection, views: Sequence[View], models: Sequence[Sequence[Panel]]
) -> bytes:
    """Draw all panels of all models and the strip of heads, and return a PNG.

    Panels are placed by hand, because matplotlib's layout takes longer than all the rest.
    """
    with matplotlib_style.context(["default", {**STYLE, **TEXT}]):
        parts = [_Part(*each) for each in zip(exploration.recordings, views, models, strict=True)]
        height = sum(part.height for part in parts)
        figure = Figure(figsize=(WIDTH_PX / DPI, height / DPI), dpi=DPI)
        top = 0.0
        for part in parts:
            part.draw(figure, top, height, exploration, selection)
            top += part.height
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=DPI, metadata={"Software": None})
    return written.getvalue()


class _Part:
    """The panels of one model, with their places in pixels."""

    def __init__(self, recording: Recording, view: View, panels: Sequence[Panel]) -> None:
        self.recording, self.view = recording, view
        self.large = [panel for panel in panels if panel.key != "heads"]
        self.heads = next((panel for panel in panels if panel.key == "heads"), None)
        image_height, image_width = _size(recording)
        aspect = min(image_height / image_width, 3.0)
        self.width = (WIDTH_PX - GAP) / (len(self.large) + 1) - GAP
        self.titles = [_wrapped(panel.title, self.width) for panel in self.large]
        self.lines = max([1, *(title.count("\n") + 1 for title in self.titles)])
        self.panel_height = self.width * aspect
        self.head_width = (WIDTH_PX - GAP) / MOST_HEADS - GAP
        self.head_height = self.head_width * aspect
        rows = 0 if self.heads is None else -(-len(self.heads.values) // MOST_HEADS)
        self.height = LINE * (self.lines + 3.5) + self.panel_height
        self.height += 0 if not rows else 1.4 * LINE + rows * (self.head_height + 1.3 * LINE)

    def draw(self, figure: Figure, top: float, total: float, exploration: Exploration, selection: Selection) -> None:
        """Draw the panels below ``top``; ``total`` is the height of the figure."""

        def place(left: float, upper: float, width: float, height: float) -> Axes:
            return figure.add_axes((left / WIDTH_PX, 1 - (upper + height) / total, width / WIDTH_PX, height / total))

        def write(text: str, upper: float, weight: str = "normal") -> None:
            figure.text(GAP / WIDTH_PX, 1 - upper / total, text, va="top", fontweight=weight)

        heading = f"{model_title(self.recording)} · block {self.view.block} · {selection.site}"
        write(heading, top + 0.4 * LINE, "bold")
        upper = top + LINE * (self.lines + 1.9)
        for index in range(len(self.large) + 1):
            panel = place(GAP + index * (self.width + GAP), upper, self.width, self.panel_height)
            if not index:
                _draw_photograph(panel, exploration, self.recording, selection, self.view, self.width)
                continue
            one = self.large[index - 1]
            _draw_values(panel, self.recording, one, one.values)
            panel.set_title(self.titles[index - 1], fontweight="normal")
            match = self.view.match if one.key == "match" else None
            marked = self.view.token if match is None else match.nearest
            if not isinstance(marked, str):
                outline(panel, marked, self.recording.layout.grid, covered_by(self.recording))
            if one.colours:
                panel.set_xlabel(_scale(one))
        if self.heads is None:
            return
        upper += self.panel_height + 1.6 * LINE
        write(f"{self.heads.title}: {_scale(self.heads)}", upper)
        for head, values in enumerate(self.heads.values):
            row, column = divmod(head, MOST_HEADS)
            left = GAP + column * (self.head_width + GAP)
            down = upper + 1.4 * LINE + row * (self.head_height + 1.3 * LINE)
            panel = place(left, down, self.head_width, self.head_height)
            _draw_values(panel, self.recording, self.heads, values)
            panel.set_xlabel(f"head {head}")


def _draw_photograph(
    panel: Axes, exploration: Exploration, recording: Recording, selection: Selection, view: View, width: float
) -> None:
    size = _size(recording)
    draw_pixels(panel, photograph(recording, selection.image), size, size)
    panel.set_title(_wrapped(base_name(exploration.images[selection.image]), width), fontweight="normal")
    if view.high_hw is not None:
        for row, column in np.argwhere(view.high_hw):
            outline(panel, (int(row), int(column)), recording.layout.grid, covered_by(recording), "#ffd400", 0.8)
    if not isinstance(view.token, str):
        outline(panel, view.token, recording.layout.grid, covered_by(recording))


def _wrapped(text: str, width: float) -> str:
    return wrapped(text, max(int(width / 7.0), 6))


def _scale(panel: Panel) -> str:
    return f"{panel.labels[0]} to {panel.labels[1]} {panel.unit}".strip()


def _draw_values(panel: Axes, recording: Recording, one: Panel, values: np.ndarray) -> None:
    colours = {"diverging": DIVERGING, "sequential": SEQUENTIAL}.get(one.colours)
    low, high = one.limits
    draw_pixels(panel, values, _size(recording), covered_by(recording), cmap=colours, vmin=low, vmax=high)


def _size(recording: Recording) -> tuple[float, float]:
    assert recording.images is not None
    return recording.images.shape[-2], recording.images.shape[-1]
