"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


MODEL_COLOURS = ("#1b1b1f", "#8C3FBF", "#9C9A00", "#2FB9CC", "#D8127D", "#7A4A21")
"""Colours of models in a comparison, the first one's first: black, purple, olive, cyan, magenta, brown. None is a token
group's, and colour-blind readers tell neighbours apart by lightness, everyone by markers and dashes."""


MODEL_MARKERS = ("o", "D", "^", "s", "v", "P")


MODEL_DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.3, 1.2, 1.3)),
    (0, (2.4, 1.2)),
    (0, (8, 2)),
)
"""Markers and dashes go with the models' colours."""


INK, FAINT, PAPER = "#1b1b1f", "#6b6b76", "#ffffff"


GRID = "#dedee4"


SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps: cividis rises evenly in lightness and reads the same for colour-blind readers; RdBu is white at 0."""


WIDTHS_MM: Mapping[str, float] = {"single": 85.0, "double": 170.0}
"""Widths of a figure: one column of a paper, and two."""


NARROW_MM = 120.0
"""A narrower figure has fewer panels side by side and smaller text."""


STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 7.5,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": "medium",
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.titlesize": "small",
    "figure.titleweight": "normal",
    "figure.facecolor": PAPER,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.hspace": 0.04,
    "figure.constrained_layout.wspace": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "image.interpolation": "none",
    "legend.fontsize": "small",
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
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
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
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's usual Type 3
}
"""matplotlib settings, on top of matplotlib's own defaults; what the user has set elsewhere does not count."""


NARROW_STYLE: Mapping[str, Any] = {
    "font.size": 6.75,  # "small" text of a narrow figure is then 5.6 points
    "axes.titlepad": 3,
    "axes.labelpad": 1.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.5,
    "lines.markeredgewidth": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
}
"""What a figure narrower than ``NARROW_MM`` has in place of ``STYLE``'s."""
