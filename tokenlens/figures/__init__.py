"""Figures: one file each, numbers first (``frame``) and drawing second (``plot``).

What all of them share is here: the colours of the token groups, the style, how one is drawn by name and how it is
saved. See docs/add-a-figure.md.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenlens.catalog import Catalog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.analysis import Analysis

figures = Catalog("tokenlens.figures", "figure")

COLOURS: Mapping[str, str] = {
    "cls": "#D55E00",
    "dist": "#E69F00",
    "reg": "#009E73",
    "patch": "#0072B2",
    "cls-patch": "#D55E00",
    "cls-cls": "#D55E00",
    "patch-patch": "#0072B2",
    "reg-cls": "#CC79A7",
    "reg-patch": "#009E73",
}
"""Colours of token groups and of pairs of them: Okabe and Ito's, which colour-blind readers tell apart."""

MARKERS: Mapping[str, str] = {
    "cls": "o",
    "dist": "v",
    "reg": "^",
    "patch": "s",
    "cls-patch": "o",
    "cls-cls": "o",
    "patch-patch": "s",
    "reg-cls": "v",
    "reg-patch": "^",
}
"""Markers go with the colours, so that no line is known by its colour alone."""

STAGE_COLOURS: Mapping[str, str] = {"centring": "#9A9A9A", "gamma": "#882255", "beta": "#EAC84B"}
"""Colours of a norm's stages: none of a token group's."""

INK, FAINT, PAPER = "#1b1b1f", "#6b6b76", "#ffffff"
GRID = "#dedee4"

SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps: cividis rises evenly in lightness and reads the same for colour-blind readers; RdBu is white at 0."""

WIDTH_MM = 170.0
"""Width of a figure: two columns of a paper."""

STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": 7.5,
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.titlesize": 7,
    "figure.titleweight": "normal",
    "figure.facecolor": PAPER,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.hspace": 0.04,
    "figure.constrained_layout.wspace": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "image.interpolation": "none",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a model's name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    # Text stays text: it can be searched and edited, and takes the page's colour.
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenlens",
}
"""matplotlib settings, on top of matplotlib's own defaults and whatever the user has set."""


class NothingToDraw(ValueError):
    """The analysis has no numbers for a figure: the metric was not computed, or does not apply to the model."""


def draw(analysis: Analysis, name: str, **options: Any) -> Figure:
    """Draw one figure by name.

    Args:
        analysis: where the numbers come from.
        name: a name of ``figures``.
        **options: of the figure's ``frame`` and ``plot``, whichever takes them (``ax`` goes to ``plot``).

    Raises:
        LookupError: for an unknown figure.
        NothingToDraw: for numbers that the analysis does not have.
        ValueError: for an option that the figure does not have.
    """
    figure = figures.get(name)
    takes = {part: list(inspect.signature(getattr(figure, part)).parameters)[1:] for part in ("frame", "plot")}
    unknown = sorted(set(options) - set(takes["frame"]) - set(takes["plot"]))
    if unknown:
        known = ", ".join(dict.fromkeys(takes["frame"] + takes["plot"])) or "none"
        raise ValueError(f"the figure {name} has no option {', '.join(unknown)}. Options: {known}.")
    chosen = {part: {key: options[key] for key in names if key in options} for part, names in takes.items()}
    drawn: Figure = figure.plot(figure.frame(analysis, **chosen["frame"]), **chosen["plot"])
    return drawn


def save_figure(figure: Figure, folder: str | os.PathLike[str], name: str, dpi: int = 200) -> list[Path]:
    """Write a figure as ``name``.svg and ``name``.png into a folder, which is made if it is not there.

    Raises:
        ValueError: for a name that is not a plain file name.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"a figure's name has letters, digits and - _ . + only, got {name!r}")
    from matplotlib import style

    from tokenlens.figures._svg import svg_of

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    layout = figure.get_layout_engine()
    with style.context(["default", dict(STYLE)]):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found; to find it again for each file takes as long as drawing
        try:
            paths[0].write_text(svg_of(figure, name), encoding="utf-8")
            figure.savefig(paths[1], dpi=dpi, metadata={"Software": None})
        finally:
            figure.set_layout_engine(layout)
    return paths
