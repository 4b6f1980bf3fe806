"""The look of figures: colours, markers, sizes and matplotlib settings."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class GroupLooks(dict[str, str]):
    """Colours or markers of token groups; a group that only a family knows gets one of those that are left."""

    def __init__(self, known: Mapping[str, str], left: Sequence[str]) -> None:
        super().__init__(known)
        self._left = left

    def __missing__(self, group: str) -> str:
        return self._left[zlib.crc32(group.encode()) % len(self._left)]


_KNOWN_COLOURS = {
    "cls": "#D55E00",
    "dist": "#E69F00",
    "reg": "#009E73",
    "summary": "#CC79A7",
    "det": "#8A6A00",
    "patch": "#0072B2",
    "bias": "#56B4E9",
    "cls-patch": "#D55E00",
    "cls-cls": "#D55E00",
    "patch-patch": "#0072B2",
    "reg-cls": "#CC79A7",
    "reg-patch": "#009E73",
}
COLOURS: Mapping[str, str] = GroupLooks(_KNOWN_COLOURS, ("#7F3C8D", "#5F5F5F", "#A5AA99"))
"""Colours of token groups and pairs of groups, from Okabe and Ito's palette, which is safe for colour-blind readers."""

_KNOWN_MARKERS = {
    "cls": "o",
    "dist": "v",
    "reg": "^",
    "summary": "D",
    "det": "P",
    "patch": "s",
    "bias": "X",
    "cls-patch": "o",
    "cls-cls": "o",
    "patch-patch": "s",
    "reg-cls": "v",
    "reg-patch": "^",
}
MARKERS: Mapping[str, str] = GroupLooks(_KNOWN_MARKERS, ("<", "p", ">"))
"""Markers that go with the colours, so that no line is identified by its colour alone."""

STAGE_COLOURS: Mapping[str, str] = {"centring": "#9A9A9A", "gamma": "#882255", "beta": "#EAC84B"}
"""Colours of a norm's stages, none of which belongs to a token group."""

MODEL_COLOURS = ("#1b1b1f", "#8C3FBF", "#9C9A00", "#2FB9CC", "#D8127D", "#7A4A21")
"""Colours of the models in a comparison, in order: black, purple, olive, cyan, magenta, brown. None belongs to a token
group, and neighbours differ in lightness as well as in markers and dashes."""

MODEL_MARKERS = ("o", "D", "^", "s", "v", "P")
_GAPS = ((4, 1.5), (1.2, 1.2), (5, 1.3, 1.2, 1.3), (2.4, 1.2), (8, 2))
MODEL_DASHES: Sequence[Any] = ("-", *((0, gaps) for gaps in _GAPS))
"""Markers and dashes that go with the models' colours."""

MARKED_PATCH = "#D55E00"
"""Colour of patches with a high norm."""

INK, FAINT, PAPER = "#1b1b1f", "#6b6b76", "#ffffff"

GRID = "#dedee4"

SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps: cividis is perceptually uniform and safe for colour-blind readers; RdBu is white at 0."""

WIDTHS_MM: Mapping[str, float] = {"single": 85.0, "double": 170.0}
"""Widths of a figure: one or two columns of a paper."""

NARROW_MM = 120.0
"""Below this width a figure has fewer panels side by side and smaller text."""

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
    # Keep text as text, which can be searched and edited and takes the page's colour.
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenlens",
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's usual Type 3
}
"""matplotlib settings, applied to matplotlib's defaults; the user's global settings are ignored."""

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
"""Settings that override ``STYLE`` in figures narrower than ``NARROW_MM``."""


def model_colour(number: int) -> str:
    """Return the colour of a model by its index in the comparison."""
    return MODEL_COLOURS[number % len(MODEL_COLOURS)]


def model_look(number: int) -> dict[str, Any]:
    """Return colour, dashes and marker of a model's line; from the seventh model on, they combine differently."""
    again = number // len(MODEL_COLOURS)
    return {
        "color": model_colour(number),
        "linestyle": MODEL_DASHES[(number + again) % len(MODEL_DASHES)],
        "marker": MODEL_MARKERS[(number + 2 * again) % len(MODEL_MARKERS)],
        "markerfacecolor": model_colour(number),
        "markeredgecolor": model_colour(number),
    }


_LOOKS = {
    "standard": (0, 0),
    "twin": (0, 1),
    "paper": (1, 0),
    "everything": (1, 1),
    "norms": (2, 0),
    "qkv_first_third": (4, 0),
    "qkv_all": (4, 1),
    "mlp": (3, 0),
    "proj": (5, 0),
}
"""For each variant of a verification, in order, the index of its colour and which line with that colour it is."""


def sort_variants(names: Iterable[str]) -> list[str]:
    """Return variants without duplicates in display order, standard first; unknown ones follow by name."""
    there = set(names)
    return [name for name in _LOOKS if name in there] + sorted(there - set(_LOOKS))


def variant_look(name: str) -> dict[str, Any]:
    """Return colour, dashes and marker of a variant, the same in every figure."""
    number, relative = _LOOKS.get(name, (len(MODEL_COLOURS) - 1, 1))
    return model_look(number + relative * len(MODEL_COLOURS))


def plain_number(value: float, _: object = None) -> str:
    """Format a tick label as plain text: 1000, 0.05, 1e6."""
    moderate = value == 0 or 1e-3 <= abs(value) < 1e5
    text = f"{value:g}" if moderate else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return text.replace("-", "−")
