"""Draw the figures of a page, save them to its folder and embed them with their data."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd
from markupsafe import Markup

from tokenlens.figures import NothingToDraw, figures, figures_of, save_figure
from tokenlens.figures.style import FAINT, GRID, INK, MODEL_COLOURS, PAPER, STAGE_COLOURS
from tokenlens.report.downloads import Download, download, pack
from tokenlens.report.hover import pointed_values
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

PIXELS_PER_POINT = 2.125
"""Largest size of a drawing in the page, so that text has one size in all figures: 1024 pixels for 170 mm."""


@dataclass(frozen=True)
class PageFigure:
    """A figure in the page: its texts, the drawing as inline SVG, and its numbers.

    ``hover`` holds the values that the pointer shows, and ``narrow`` the drawing for a phone with its own, packed.
    """

    name: str
    group: str
    order: int
    title: str
    caption: str
    metrics: tuple[str, ...]
    svg: Markup
    data: Download
    hover: str
    narrow: str


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
        drawn.append(
            PageFigure(
                name,
                getattr(module, "GROUP", ""),
                module.ORDER,
                module.TITLE,
                module.CAPTION,
                tuple(module.METRICS),
                _inline(svg, f"f{module.ORDER}"),
                download(frame, name, title),
                pack(pointed_values(figure)),
                _narrow(module, frame, name),
            )
        )
    return drawn, left_out


def _narrow(module: ModuleType, frame: pd.DataFrame, name: str) -> str:
    """Draw a figure for a phone, with its panels below each other, and pack it."""
    figure = module.plot(frame, width="single")
    with tempfile.TemporaryDirectory() as folder:
        svg = save_figure(figure, folder, name, ("svg",))[0].read_text(encoding="utf-8")
    return pack({"svg": _inline(svg, f"f{module.ORDER}"), "hover": pointed_values(figure)})


def page_colour(colour: str) -> str:
    """Return the CSS value for a figure's colour."""
    return _PAGE_COLOURS.get(colour, colour)


def _inline(svg: str, prefix: str) -> Markup:
    """Convert one of our SVG files to inline SVG, which fills its container and uses the page's colours.

    Looks that several elements share become classes, whose names begin with ``prefix``: a fifth of the size.
    """
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    points = float(re.search(r'viewBox="0 0 ([\d.]+)', head)[1])  # type: ignore[index]
    head = re.sub(r' (?:width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    for colour, variable in _PAGE_COLOURS.items():
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)  # fill and stroke
    counts = Counter(re.findall(r'style="([^"]*)"', rest))
    names = {look: f"{prefix}-{index}" for index, look in enumerate(look for look, n in counts.items() if n > 1)}
    rest = re.sub(
        r'style="([^"]*)"', lambda match: f'class="{names[match[1]]}"' if match[1] in names else match[0], rest
    )
    rules = "".join(f".{name}{{{look}}}" for look, name in names.items())
    looks = f'style="--wide: {points * PIXELS_PER_POINT:.0f}px" aria-hidden="true" focusable="false"'
    return Markup(f"{head} {looks}><style>{rules}</style>{rest}")
