"""Draw the figures of a page, save them to its folder and embed them with their data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tokenlens.figures import NothingToDraw, figures, figures_of, save_figure
from tokenlens.figures.style import FAINT, GRID, INK, MODEL_COLOURS, PAPER, STAGE_COLOURS
from tokenlens.report.downloads import Download, download
from tokenlens.storage.result import Result

_PAGE_COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    GRID: "var(--rule)",
    STAGE_COLOURS["gamma"]: "var(--gamma)",
    MODEL_COLOURS[1]: "var(--second)",
    MODEL_COLOURS[5]: "var(--sixth)",
}
"""Colours of figures that differ on a dark page."""


@dataclass(frozen=True)
class PageFigure:
    """A figure in the page: its texts, the drawing as inline SVG, and its numbers."""

    name: str
    title: str
    caption: str
    metrics: tuple[str, ...]
    svg: Markup
    data: Download


def draw_all(result: Result, folder: Path, title: str) -> tuple[list[PageFigure], list[tuple[str, str]]]:
    """Draw every figure for a kind of result, and save it as ``name.svg`` and ``name.png`` in a folder.

    Returns:
        The figures, and the names of those that cannot be drawn, with the reason. The page's title becomes part of the
        names of the data files.
    """
    drawn, left_out = [], []
    for name in figures_of(result.kind):
        module = figures.module(name)
        try:
            frame = module.frame(result)
            figure = module.plot(frame)
        except NothingToDraw as reason:
            left_out.append((name, str(reason)))
            continue
        svg = save_figure(figure, folder, name)[0].read_text(encoding="utf-8")
        data = download(frame, name, title)
        drawn.append(PageFigure(name, module.TITLE, module.CAPTION, tuple(module.METRICS), _inline(svg), data))
    return drawn, left_out


def page_colour(colour: str) -> str:
    """Return the CSS value for a figure's colour."""
    return _PAGE_COLOURS.get(colour, colour)


def _inline(svg: str) -> Markup:
    """Convert one of our SVG files to inline SVG, which fills its container and uses the page's colours."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    for colour, variable in _PAGE_COLOURS.items():
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)  # fill and stroke
    return Markup(f'{head} aria-hidden="true" focusable="false">{rest}')
