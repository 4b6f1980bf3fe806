"""The figures of a page: drawn, saved beside it, put into it, each with its data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from tokenlens.figures.base import NothingToDraw, figures, figures_of, save_figure
from tokenlens.figures.style import FAINT, GRID, INK, MODEL_COLOURS, PAPER, STAGE_COLOURS
from tokenlens.report.downloads import Download, download

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis
    from tokenlens.comparison.comparison import Comparison
    from tokenlens.verification.result import Verification

_PAGE_COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    GRID: "var(--rule)",
    STAGE_COLOURS["gamma"]: "var(--gamma)",
    MODEL_COLOURS[1]: "var(--second)",
    MODEL_COLOURS[5]: "var(--sixth)",
}
"""Colours of figures that are others on a dark page."""


@dataclass(frozen=True)
class Drawing:
    """A figure in the page: its texts, the drawing as inline SVG, and the numbers that are drawn."""

    name: str
    title: str
    caption: str
    metrics: tuple[str, ...]
    svg: Markup
    data: Download


@dataclass(frozen=True)
class LeftOut:
    """A figure that cannot be drawn, and why."""

    name: str
    reason: str


def draw_all(
    subject: Analysis | Comparison | Verification, kind: str, folder: Path, of: str
) -> tuple[list[Drawing], list[LeftOut]]:
    """Draw every figure of a kind, in order, and save it into a folder; what cannot be drawn comes with the reason.

    Args:
        subject: where the numbers come from.
        kind: "analysis" or "comparison".
        folder: gets ``name.svg`` and ``name.png`` of each figure.
        of: whose numbers these are, for the names of the data files.
    """
    drawn, left_out = [], []
    for name in figures_of(kind):
        module = figures.module(name)
        try:
            frame = module.frame(subject)
            figure = module.plot(frame)
        except NothingToDraw as reason:
            left_out.append(LeftOut(name, str(reason)))
            continue
        svg = save_figure(figure, folder, name)[0].read_text(encoding="utf-8")
        data = download(frame, name, of)
        drawn.append(Drawing(name, module.TITLE, module.CAPTION, tuple(module.METRICS), _inline(svg), data))
    return drawn, left_out


def page_colour(colour: str) -> str:
    """A figure's colour as the page's style knows it."""
    return _PAGE_COLOURS.get(colour, colour)


def _inline(svg: str) -> Markup:
    """An SVG of ours as part of the page: no header, as wide as its place, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    for colour, variable in _PAGE_COLOURS.items():
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)  # fill and stroke
    return Markup(f'{head} aria-hidden="true" focusable="false">{rest}')
